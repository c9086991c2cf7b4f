"""What a drawn model consists of: a record per block and one per model; their fields choose constructs."""

from __future__ import annotations

from dataclasses import dataclass, fields

from toprovar_fx.schedules import Schedule

SCHEDULES = {
    "square": Schedule(tuple((side, side) for side in (1, 2, 3, 4))),
    "wide": Schedule(((1, 1), (1, 2), (2, 3), (3, 5))),
    "tall": Schedule(((1, 1), (2, 1), (4, 2), (5, 3))),
    "jump": Schedule(((1, 1), (3, 3), (4, 5))),
    # Every scale has as many tokens as all before it: a cache that grows is as long as the scale.
    "doubling": Schedule(((1, 1), (1, 3), (2, 3), (2, 6))),
}

# Choices of a block, by field of `BlockSpec`.
BLOCK_CHOICES: dict[str, tuple[object, ...]] = {
    "norm": ("layer", "layer_weightless", "rms", "rms_handwritten", "none"),
    "placement": ("pre", "post", "sandwich"),
    "adaln": ("none", "shared", "block"),
    "branches": ("serial", "parallel"),
    "qkv": ("fused_view", "fused_split", "separate"),
    "bias": (True, False),
    "gqa": ("none", "native", "repeat", "expand"),
    "qk_norm": ("none", "l2", "rms", "layer"),
    "position": ("none", "rope_half", "rope_pairs", "rope_complex", "table"),
    "layout": ("heads_first", "tokens_first"),
    "attention": (
        "sdpa",
        "sdpa_keyword",
        "sdpa_bias",
        "sdpa_triangle",
        "matmul",
        "matmul_float",
        "matmul_triangle",
        "einsum",
        "bmm",
        "flash",
        "xformers",
        "flex",
        "flex_distance",
        "flex_temperature",
        "flex_table",
    ),
    "softmax_scale": ("default", "given"),
    "cache": ("slice", "narrow", "index_copy", "index_put", "cat", "none"),
    "layer_scale": (False, True),
    "mlp": ("gelu", "swiglu", "swiglu_fused"),
    "cross": ("none", "sdpa", "masked", "matmul"),
    "guidance": ("none", "mixed"),
}

# Attentions in which a value belongs to each key.
PER_KEY = ("sdpa_bias", "sdpa_triangle", "matmul_triangle", "flex_distance", "flex_table")

# What must never be pruned over: these stand in place of the self-attention ...
ATTENTION_MIXERS = (
    "causal",
    "softmax_queries",
    "attention_dropout",
    "block_mask",
)
# ... and these before the attention or the MLP.
HIDDEN_MIXERS = (
    "cumsum",
    "roll",
    "flip",
    "conv",
    "sort",
    "pool",
    "token_norm",
    "token_softmax",
    "token_mean",
    "token_matmul",
    "first_token",
    "reorder",
    "global_scale",
    "length_factor",
    "batch_mean",
    "dropout",
)
MIXERS = (*ATTENTION_MIXERS, *HIDDEN_MIXERS)

CASE_CHOICES: dict[str, tuple[object, ...]] = {
    "schedule": tuple(SCHEDULES),
    "trace": ("symbolic", "static"),
    "residual": ("plain", "wide_sum", "wide_stream"),
    "entry": ("plain", "table"),
    "head": ("plain", "modulated", "none"),
    "rows": ("plain", "guided"),
    "pruned_kv": ("drop", "keep"),
    "restore": ("cache", "residual"),
    "score": ("random", "frequency", "entropy", "same_layer"),
}


@dataclass(frozen=True)
class BlockSpec:
    """One block; the fields take the values of `BLOCK_CHOICES`.

    `mixer` is one of `MIXERS` or "none"; `mixer_at` is the branch, "attention" or "mlp", before which it is.
    """

    norm: str = "layer"
    placement: str = "pre"
    adaln: str = "none"
    branches: str = "serial"
    qkv: str = "fused_view"
    bias: bool = True
    gqa: str = "none"
    qk_norm: str = "none"
    position: str = "none"
    layout: str = "heads_first"
    attention: str = "sdpa"
    softmax_scale: str = "default"
    cache: str = "slice"
    layer_scale: bool = False
    mlp: str = "gelu"
    cross: str = "none"
    guidance: str = "none"
    mixer: str = "none"
    mixer_at: str = "mlp"


@dataclass(frozen=True)
class CaseSpec:
    """One model and the run that it is put to.

    Attributes:
        blocks: one record per layer; equal ones make equal code.
        heads, head_width: of every block; with grouped queries there are half as many key heads.
        images: B; the rows are B, or 2B when guided.
        skip: whether one layer keeps no token at the last scale.
        The rest: see `CASE_CHOICES`.
    """

    blocks: tuple[BlockSpec, ...]
    heads: int = 2
    head_width: int = 4
    images: int = 1
    schedule: str = "square"
    trace: str = "symbolic"
    residual: str = "plain"
    entry: str = "plain"
    head: str = "plain"
    rows: str = "guided"
    pruned_kv: str = "drop"
    restore: str = "cache"
    score: str = "random"
    skip: bool = False
    seed: int = 0

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @property
    def batch(self) -> int:
        return self.images * (2 if self.rows == "guided" else 1)

    @property
    def scales(self) -> Schedule:
        return SCHEDULES[self.schedule]

    @property
    def invalid_layers(self) -> set[int]:
        return {layer for layer, block in enumerate(self.blocks) if block.mixer != "none"}


def constructs_of(case: CaseSpec) -> set[str]:
    """Names of all constructs in a case, as "field=value"."""
    found = {f"{name}={getattr(case, name)}" for name in CASE_CHOICES}
    found |= {f"{name}={getattr(block, name)}" for block in case.blocks for name in BLOCK_CHOICES}
    return found | {f"mixer={block.mixer}" for block in case.blocks if block.mixer != "none"}


def expected_dense(case: CaseSpec) -> set[str]:
    """Valid constructs of a case that the analysis is known to refuse, as "field=value".

    A value per key (a mask's columns, a score_mod of the key's position) needs the keys of all tokens.
    """
    found: set[str] = set()
    for block in case.blocks:
        per_key = block.attention in PER_KEY
        lost = case.pruned_kv == "drop" and block.cache != "none"
        if per_key and lost:
            found.add(f"attention={block.attention}")
    return found


def all_constructs() -> set[str]:
    """Names of everything that can be drawn."""
    choices = BLOCK_CHOICES | CASE_CHOICES | {"mixer": MIXERS}
    return {f"{name}={value}" for name, values in choices.items() for value in values}


def differences(spec: BlockSpec) -> str:
    """The fields of a block that are not the plainest, for messages."""
    plain = BlockSpec()
    changed = [f.name for f in fields(spec) if getattr(spec, f.name) != getattr(plain, f.name)]
    return " ".join(f"{name}={getattr(spec, name)}" for name in changed) or "plain"
