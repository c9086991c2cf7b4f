"""Searching options for a budget: what is tried, what it costs, and how it is judged."""

from .search import Tuned, tune

__all__ = ["Tuned", "tune"]
