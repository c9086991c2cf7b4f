"""The policies by name, and tables of them."""

from __future__ import annotations

from ..registry import Registry
from .fastvar import FastVAR
from .policy import Policy
from .random_tokens import RandomTokens
from .skipvar import SkipVAR
from .sparsevar import SparseVAR
from .toprovar import ToProVAR

_BUILT_IN: tuple[type[Policy], ...] = (ToProVAR, FastVAR, SkipVAR, SparseVAR, RandomTokens)

POLICIES: Registry[type[Policy]] = Registry("policy", {policy.name: policy for policy in _BUILT_IN})
# Policies whose answers follow from the options and the entropies alone: whole steps, graphs and calibration
# can give them too. The names are built in, so nothing else can stand for them.
BY_CRITERION = (ToProVAR.name, RandomTokens.name)


def policies_table() -> str:
    """Return a Markdown table of every policy: name, what it decides, its constants, its source."""
    rows = ["| Policy | Decides | Constants | Published in |", "|---|---|---|---|"]
    for name in POLICIES:
        policy = POLICIES.find("policy", name)
        constants = ", ".join(f"`{option}={value!r}`" for option, value in policy.constants.items())
        cells = f"`{name}`", policy.summary, constants or "those of the preset", policy.source
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
