"""Why a graph, or a part of it, stays dense: one enum, each member with the advice that a user can act on."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from torch import fx

# Metadata of a packed attention that could not be parted: what was not proven.
PACKED_WHY = "toprovar_packed"


class Reason(enum.Enum):
    """A typed reason for leaving something dense; the value is the advice."""

    NO_TOKEN_AXIS = (
        "no input of shape [rows, tokens, width] feeds an attention; compile the scale step of the model"
    )
    ONE_TOKEN = "a scale of one token has nothing to prune"
    AMBIGUOUS_LENGTH = (
        "it is not certain which rows are the scale's tokens; leave out dynamic, so that their number alone "
        "is a symbol, or pass what is no token in another shape"
    )
    RECOMPILE_LIMIT = (
        "a constant token count takes a graph per scale, more than Dynamo compiles, and scales that run "
        "eagerly cannot read pruned caches; pass recompile_limit=64 to torch.compile, or leave out "
        "dynamic=False"
    )
    SECOND_CALL = (
        "a step of these options ran at this scale already, and what is known of a layer is that of one "
        "call; pass all batch rows in one call, and give another model other options"
    )
    NO_ATTENTION = "no self-attention was found; compile the scale step, not a part of it"
    MASKED_ATTENTION = (
        "self-attention is causal, or a value per key goes into it and pruned tokens leave no keys; a "
        "next-scale step needs no causal mask, and pruned_kv='keep' without skipped layers keeps all keys"
    )
    HANDWRITTEN_ATTENTION = (
        "an attention of single operators is not softmax(q k^T) v; call F.scaled_dot_product_attention, or "
        "write matmul, softmax over the keys, matmul"
    )
    ATTENTION_VARIANT = (
        "this attention does more than softmax(scale q k^T + mask) v; call it without windows, blocks "
        "or slopes, with q, k and v apart"
    )
    PACKED_ROWS = (
        "tokens of all batch rows lie on one axis, and nothing says that they are equally many in every row; "
        "merge them from [rows, tokens, ...] right before the call, compute their cumulative lengths by "
        "torch.arange, and part them right after it"
    )
    RANDOM = "random numbers, such as dropout's, would fall on other tokens; call the model in eval mode"
    NO_BLOCK = "no cut through a single hidden state around the attention was found"
    UNKNOWN_OPERATOR = "the operator is not known to act on each token alone; add a rule in analysis/rules.py"
    TOKEN_MIXING = "the operator mixes tokens, so rows cannot be dropped before it"
    RESHAPED_TOKENS = "the token axis is merged with another axis or split"
    LENGTH_IN_ARITHMETIC = "the token count enters arithmetic, so its value would change with the kept tokens"
    IN_PLACE_WRITE = (
        "an in-place write reaches memory from outside the block, such as its input, a value without tokens, "
        "or one that was computed before attention; write the result to a new tensor"
    )
    CACHE_WRITE = "the key/value cache is written in a way that is not a slice of the current scale's tokens"
    CACHE_LAYOUT = (
        "cached keys or values are kept or used in a way whose rows cannot be told; write the scale's rows "
        "behind those before and read from the start, or join them with torch.cat((cache, rows), dim)"
    )
    NO_SUBLAYERS = "blocks are no chains of equally many residual sums; the policy decides for whole layers"
    WHOLE_CACHE = (
        "the cache keeps all its rows; a cache policy needs keys and values [R, heads, rows, width] that a "
        "fused attention reads"
    )
    SHARED_STATE = "a cache is used by more than one block"
    BATCH_ROWS = (
        "rows of the batch meet inside the block, and each may keep other tokens; mix them between blocks"
    )
    RESIDUAL_DTYPE = "the block changes the type of the hidden state; cast it before the first block"
    SHAPE_PROOF = "the rewritten graph's shapes did not come out right; please report the model"
    FAILED_REWRITE = "a pass raised an error, so the graph stays as it was; please report the model"
    NOT_COMPILED = (
        "the compiler raised an error, so the graph runs as traced; on_error='raise' shows all of it"
    )
    GRADIENTS = "pruning is for inference; call the model under torch.no_grad() or torch.inference_mode()"
    GATE_ON_HOST = "the host decides, with the same result; docs/design.md says what a graph can decide"
    VERIFICATION = "the permutation check did not reproduce the dense result"
    UNDECIDED_STEP = (
        "a decision needs values of the scale that runs, so its blocks run one by one; give `keep` ratios "
        "with entropies, or choose unit='block'"
    )
    CHECKED_BY_BLOCK = (
        "the step may not run twice, so its blocks run one by one to check their pruned graphs; "
        "verify='never' leaves the check out"
    )
    NOT_CAPTURED = "the scale step runs without a CUDA graph; choose cuda_graphs=False to say so"


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


def fallback_at(reason: Reason, node: fx.Node, detail: str, layer: int | None = None) -> Fallback:
    """A fallback with the name and the source line of a node."""
    return Fallback(reason, node.name, source_line(node), detail, layer)


class Unsupported(Exception):  # noqa: N818 - a verdict that the pipeline catches, not an error that reaches users
    """Raised inside the analysis and the passes; becomes a `Fallback` in the report."""

    def __init__(self, reason: Reason, node: fx.Node | None = None, detail: str = "") -> None:
        self.fallback = Fallback(reason, detail=detail) if node is None else fallback_at(reason, node, detail)
        super().__init__(str(self.fallback))

    def at(self, layer: int) -> Fallback:
        """The fallback of one layer."""
        return replace(self.fallback, layer=layer)


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
