"""Why a graph, or a part of it, stays dense: one enum, each member with the advice that a user can act on."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from torch import fx


class Reason(enum.Enum):
    """A typed reason for leaving something dense; the value is the advice."""

    NO_TOKEN_AXIS = (
        "no input of shape [rows, tokens, width] feeds an attention; compile the scale step of the model"
    )
    ONE_TOKEN = "a scale of one token has nothing to prune"
    AMBIGUOUS_LENGTH = "the token count is a constant or equals another size; do not trace with dynamic=False"
    NO_ATTENTION = "no self-attention was found; compile the scale step, not a part of it"
    MASKED_ATTENTION = "self-attention takes a mask or is causal; a next-scale step needs neither"
    NO_BLOCK = "no cut through a single hidden state around the attention was found"
    UNKNOWN_OPERATOR = "the operator is not known to act on each token alone; add a rule in analysis/rules.py"
    TOKEN_MIXING = "the operator mixes tokens, so rows cannot be dropped before it"
    RESHAPED_TOKENS = "the token axis is merged with another axis or split"
    LENGTH_IN_ARITHMETIC = "the token count enters arithmetic, so its value would change with the kept tokens"
    IN_PLACE_WRITE = "an in-place write reaches the block's input"
    CACHE_WRITE = "the key/value cache is written in a way that is not a slice of the current scale's tokens"
    NO_SUBLAYERS = "blocks are no chains of equally many residual sums; the policy decides for whole layers"
    SHARED_STATE = "a cache is used by more than one block"
    GRADIENTS = "pruning is for inference; call the model under torch.no_grad() or torch.inference_mode()"
    VERIFICATION = "the permutation check did not reproduce the dense result"


@dataclass(frozen=True)
class Fallback:
    """One place that stays dense.

    Attributes:
        reason: the typed reason; its value is the advice.
        node: name of the graph's node, or "" for the graph as a whole.
        source: source line that the node was traced from, or "".
        detail: what was found there.
        layer: layer index, or None where it concerns the whole graph.
    """

    reason: Reason
    node: str = ""
    source: str = ""
    detail: str = ""
    layer: int | None = None

    def __str__(self) -> str:
        where = f" at {self.node}" if self.node else ""
        line = f" ({self.source})" if self.source else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.reason.name}{where}{line}{detail}; {self.reason.value}"


class Unsupported(Exception):  # noqa: N818 - a verdict that the pipeline catches, not an error that reaches users
    """Raised inside the analysis and the passes; becomes a `Fallback` in the report."""

    def __init__(self, reason: Reason, node: fx.Node | None = None, detail: str = "") -> None:
        self.fallback = Fallback(
            reason,
            node.name if node is not None else "",
            source_line(node) if node is not None else "",
            detail,
        )
        super().__init__(str(self.fallback))


def source_line(node: fx.Node) -> str:
    """The user's source line that `node` was traced from: "file:line, code", or ""."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.strip().splitlines() if line.strip()]
    for position in range(len(lines) - 1, -1, -1):
        if lines[position].startswith("File "):
            place = lines[position].removeprefix("File ").replace('"', "")
            code = lines[position + 1] if position + 1 < len(lines) else ""
            path, _, rest = place.partition(", line ")
            number = rest.partition(",")[0]
            return f"{path.rsplit('/', 1)[-1]}:{number}, {code}"
    return ""
