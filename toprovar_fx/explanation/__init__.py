"""What the compiler did with a model and why: `explain`, its report as text, JSON and one HTML page."""

from .explanation import Explanation
from .run import explain, explaining

__all__ = ["Explanation", "explain", "explaining"]
