"""`toprovar policies`: the methods that the options `policy` and `cache_policy` select."""

from __future__ import annotations

from typing import Any

from ..cache_policies.registry import CACHE_POLICIES
from ..policies.registry import POLICIES


def list_policies() -> dict[str, Any]:
    """Return what `--json` prints: summary, source, constants and deviations of every policy."""
    found = {}
    for name in POLICIES:
        policy = POLICIES.find("policy", name)
        found[name] = {
            "summary": policy.summary,
            "source": policy.source,
            "decides_per": policy.granularity,
            "constants": dict(policy.constants),
            "deviations": list(policy.deviations),
        }
    caches = {}
    for name in CACHE_POLICIES:
        kept = CACHE_POLICIES.find("cache_policy", name)
        caches[name] = {
            "summary": kept.summary,
            "source": kept.source,
            "cache_budget": kept.share,
            "deviations": list(kept.deviations),
        }
    return {"command": "policies", "policies": found, "cache_policies": caches}


def show_policies(result: dict[str, Any]) -> None:
    """Print a paragraph per policy."""
    for name, policy in result["policies"].items():
        print(f"{name}: {policy['summary']} ({policy['source']})")
        constants = ", ".join(f"{option}={value!r}" for option, value in policy["constants"].items())
        print(f"    constants: {constants or 'those of the preset'}")
        for deviation in policy["deviations"]:
            print(f"    deviates: {deviation}")
    for name, policy in result["cache_policies"].items():
        print(f"cache_policy={name}: {policy['summary']} ({policy['source']})")
        print(f"    constants: cache_budget={policy['cache_budget']:g}")
        for deviation in policy["deviations"]:
            print(f"    deviates: {deviation}")
