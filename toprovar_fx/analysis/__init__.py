"""Reads a traced graph and states facts: where tokens run, which nodes attend, where blocks begin and end.

Nothing here changes a graph. What is not understood comes back as a `Fallback` with a `Reason`.
"""
