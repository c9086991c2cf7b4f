"""`toprovar policies`: the methods that `--option policy=NAME` or a variant NAME selects."""

from __future__ import annotations

from typing import Any

from ..policies.registry import POLICIES


def list_policies() -> dict[str, Any]:
    """Return what `--json` prints: of every policy its summary, source, constants and deviations."""
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
    return {"command": "policies", "policies": found}


def show_policies(result: dict[str, Any]) -> None:
    """Print a paragraph per policy."""
    for name, policy in result["policies"].items():
        print(f"{name}: {policy['summary']} ({policy['source']})")
        constants = ", ".join(f"{option}={value!r}" for option, value in policy["constants"].items())
        print(f"    constants: {constants or 'those of the preset'}")
        for deviation in policy["deviations"]:
            print(f"    deviates: {deviation}")
