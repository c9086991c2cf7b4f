"""Policies that decide which keys and values of earlier scales stay in the cache (docs/policies.md)."""
