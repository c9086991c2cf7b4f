"""The cache policies by name, and a table of them."""

from __future__ import annotations

from ..registry import Registry
from .hack import HACK
from .policy import CachePolicy
from .scalekv import ScaleKV

CACHE_POLICIES: Registry[type[CachePolicy]] = Registry(
    "cache policy", {policy.name: policy for policy in (CachePolicy, HACK, ScaleKV)}
)


def cache_policies_table() -> str:
    """Return a Markdown table of every cache policy: name, what stays, the default budget, its source."""
    rows = ["| Cache policy | Keeps | `cache_budget` | Published in |", "|---|---|---|---|"]
    for name in CACHE_POLICIES:
        policy = CACHE_POLICIES.find("cache_policy", name)
        rows.append(f"| `{name}` | {policy.summary} | {policy.share:g} | {policy.source} |")
    return "\n".join(rows) + "\n"
