"""The table of options: name, type, default, valid values and meaning of every setting."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

from . import option_checks as check
from .cache_policies.registry import CACHE_POLICIES
from .criteria.score_registry import SCORES
from .declaration import PASSES
from .policies.registry import POLICIES
from .presets import DEFAULT_PRESET, PRESETS


class _Unset:
    """Type of the marker for "not given": the preset fills such a field."""

    def __repr__(self) -> str:
        return "<from preset>"


# Typed as any value, for it stands in every field.
UNSET: Any = _Unset()


def _option(default: object, valid: check.Check, text: str, *, compare: bool = True) -> Any:
    metadata = {"default": default, "check": valid, "values": valid.values, "help": text}
    return field(default=UNSET, metadata=metadata, compare=compare)


@dataclass(frozen=True, kw_only=True)
class OptionFields:
    """The settings as they were given, `UNSET` where they were not; `Options` fills and checks them."""

    preset: str = _option(
        DEFAULT_PRESET, check.choice(*PRESETS), "Starting values; other options override it.", compare=False
    )

    prune_scales: bool = _option(
        True,
        check.flag(),
        "Scale axis: let the depth D decide where pruning begins. Off: it begins at `min_scale`.",
    )
    prune_layers: bool = _option(
        True,
        check.flag(),
        "Layer axis: let the scope R spare global layers. Off: R = 1 in every unprotected layer.",
    )
    prune_tokens: bool = _option(
        True,
        check.flag(),
        "Token axis: compute only the K most salient tokens. Off: a layer runs whole or not at all.",
    )

    depth: Literal["online", "fixed", "off"] = _option(
        "online",
        check.choice("online", "fixed", "off"),
        "Where the depth D comes from (eq. 3): this image, or set.",
    )
    depth_scale: int | None = _option(
        None, check.integer(optional=True), "The scale index D when `depth` is 'fixed'."
    )
    tau: float = _option(0.4, check.number(0, 1), "Threshold of the low-entropy ratio rho (eq. 3).")
    depth_compare: Literal["ge", "le"] = _option(
        "ge", check.choice("ge", "le"), "D is the first scale with rho >= tau ('ge') or rho <= tau ('le')."
    )
    depth_layers: str | tuple[int, ...] = _option(
        "late",
        check.layer_list("all", "late"),
        "Layers whose ratios are averaged into rho; 'late': the last third.",
    )
    min_scale: int = _option(-3, check.integer(), "First scale at which D may fire.")
    prune_from: Literal["after", "at"] = _option(
        "after", check.choice("after", "at"), "Prune the scales after D (s > D) or D as well (s >= D)."
    )

    scale_exit: int | str | None = _option(
        None,
        check.integer(words=("depth",), optional=True),
        "First scale that is not run at all; 'depth': no scale after D is run.",
    )
    keep: tuple[tuple[int, float | tuple[tuple[int, float], ...]], ...] | None = _option(
        None,
        check.keep_ratios(),
        "Explicit keep ratios per scale, or per scale and layer, instead of eq. 6's.",
    )
    budget: float | None = _option(
        None,
        check.speedup(optional=True),
        "Dense FLOPs of a generation over those it may spend; keep ratios are solved for it.",
    )
    budget_order: Literal["last_scales", "even"] = _option(
        "last_scales",
        check.choice("last_scales", "even"),
        "Which scales a budget cuts: the last ones to the least before any other, or all alike.",
    )

    layer_scope: Literal["online", "fixed", "off"] = _option(
        "online",
        check.choice("online", "fixed", "off"),
        "Where the layer scope R comes from (eq. 4): this image, `scope_values`, or 1 everywhere.",
    )
    scope_values: tuple[float, ...] | None = _option(
        None,
        check.ratios(optional=True),
        "R of every layer when `layer_scope` is 'fixed'.",
    )
    scope_of: Literal["entropy_map", "tokens"] = _option(
        "entropy_map", check.choice("entropy_map", "tokens"), "Matrix whose singular values give R."
    )
    scope_centre: bool = _option(False, check.flag(), "Subtract the mean from that matrix first.")
    beta: float = _option(0.02, check.number(0), "Steepness of R = exp(-beta (sigma1 / sigma2 - 1)) (eq. 4).")
    representative_scale: float = _option(
        6 / 13,
        check.number(0, 1),
        "Scale at which R is measured, as a fraction f of S: index round(f S) - 1.",
    )
    protected_layers_first: int = _option(
        2, check.integer(0), "Number of leading layers that are never pruned."
    )
    protected_layers_last: int = _option(1, check.integer(0), "Number of final layers that are never pruned.")
    layer_skip_below: float = _option(
        0.0, check.number(0, 1), "Skip a layer (K = 0) when its mean retention is below this; 0: never."
    )

    score: str = _option(
        "entropy", check.registered(SCORES), "What ranks the tokens; see docs/extending.md for one's own."
    )
    keep_low: bool = _option(
        True, check.flag(), "Keep tokens of low entropy (the paper). Off: of high entropy."
    )
    normalise: Literal["mean", "rank", "minmax", "literal"] = _option(
        "mean",
        check.choice("mean", "rank", "minmax", "literal"),
        "Scaling of the entropies (eq. 5): mean 1, rank or range in [0, 1], or sum 1 as printed ('literal').",
    )
    alpha_min: float = _option(0.3, check.number(0, 1), "Prune rate of a token with saliency 0 (eq. 6).")
    alpha_max: float = _option(0.8, check.number(0, 1), "Prune rate of a token with saliency 1 (eq. 6).")
    min_keep: float = _option(
        0.1, check.number(0, 1), "Least share of tokens kept in a layer that is not skipped."
    )
    buckets: tuple[float, ...] = _option(
        (0.1, 0.25, 0.5, 0.75),
        check.ratios(ascending=True),
        "Keep ratios that K is rounded up to, so that few shapes occur; 1.0 is always added.",
    )
    sampling: Literal["topk", "bernoulli"] = _option(
        "topk",
        check.choice("topk", "bernoulli"),
        "Keep the K best tokens, or draw K by their keep probability.",
    )
    entropy_source: Literal["previous_scale", "dense_layer", "previous_layer", "same_layer"] = _option(
        "previous_scale",
        check.choice("previous_scale", "dense_layer", "previous_layer", "same_layer"),
        "Whose entropies rank a layer's tokens; 'same_layer' prunes cross-attention and FFN only.",
    )
    ranking_depth: float | None = _option(
        None,
        check.number(0, 1, optional=True),
        "With `entropy_source='previous_scale'`: one layer's latest map ranks all; its share of the depth.",
    )
    entropy_keys: Literal["all", "scale"] = _option(
        "all", check.choice("all", "scale"), "Keys the entropy runs over: all cached tokens or this scale's."
    )

    restore: Literal["residual", "cache"] = _option(
        "cache",
        check.choice("residual", "cache"),
        "What a pruned token gets: nothing added, or the last dense scale's update, interpolated.",
    )
    pruned_kv: Literal["drop", "keep"] = _option(
        "drop", check.choice("drop", "keep"), "Whether pruned tokens leave keys and values for later scales."
    )
    cfg_rows: Literal["shared", "cond", "per_row"] = _option(
        "shared",
        check.choice("shared", "cond", "per_row"),
        "Keep set of the two guidance rows: of their mean statistic, the conditional row's, or one each.",
    )
    batch_rule: Literal["mean", "max"] = _option(
        "mean", check.choice("mean", "max"), "How K of different samples becomes one; D is always the latest."
    )

    policy: str = _option(
        "toprovar",
        check.registered(POLICIES),
        "The method that decides; its constants go over the preset's (docs/policies.md).",
    )
    classifier: str = _option(
        "skipvar_ssim_84",
        check.text(),
        "Coefficients of `policy='skipvar'`: a name that comes with the package, or a JSON file.",
    )
    guidance_until: int | None = _option(
        None,
        check.integer(optional=True),
        "First scale without the unconditional rows of guidance; the loop has to ask (docs/policies.md).",
    )
    cache_policy: str = _option(
        "none",
        check.registered(CACHE_POLICIES),
        "Which keys and values stay in the cache after a scale; combines with every `policy`.",
    )
    cache_budget: float | None = _option(
        None,
        check.number(0, 1, optional=True),
        "With a `cache_policy`: share of the rows that the last scale would find; None: as published.",
    )
    profile: str | None = _option(
        None,
        check.text(optional=True),
        "File of `toprovar calibrate`: D, R and K as measured once, instead of online.",
        compare=False,
    )

    gate: Literal["host", "graph"] = _option(
        "host",
        check.choice("host", "graph"),
        "Where D, K and the tokens are decided: by Python between graphs, or in them (docs/design.md).",
    )
    passes: tuple[str, ...] = _option(
        (), check.registered_names(PASSES), "Passes of one's own to run; see docs/extending.md."
    )
    lowering: Literal["inductor", "eager", "auto"] = _option(
        "auto", check.choice("inductor", "eager", "auto"), "Compiler of the rewritten graphs."
    )
    unit: Literal["auto", "block", "step"] = _option(
        "auto",
        check.choice("auto", "block", "step"),
        "What one call runs: a block, or the whole scale step where its decisions are known before it; "
        "'auto': the step on CUDA, where caches are written in place.",
    )
    step_sizes: Literal["symbolic", "static"] = _option(
        "symbolic",
        check.choice("symbolic", "static"),
        "With `unit='step'`: few compilations for all scales, or one per scale and keep counts.",
    )
    step_code: Literal["shared", "fused"] = _option(
        "shared",
        check.choice("shared", "fused"),
        "With `unit='step'`: compiled blocks called in turn, or one compilation for all layers of a pattern.",
    )
    cuda_graphs: bool | Literal["auto"] = _option(
        "auto",
        check.flag_or("auto"),
        "With `unit='step'` on CUDA: replay a scale step as one CUDA graph; True: raise where it cannot be.",
    )
    verify: Literal["once", "always", "never"] = _option(
        "once",
        check.choice("once", "always", "never"),
        "When a rewritten graph is checked against the dense one.",
    )
    strict: bool = _option(
        False, check.flag(), "Raise instead of running dense where a graph cannot be pruned."
    )
    on_error: Literal["raise", "fallback"] = _option(
        "fallback",
        check.choice("raise", "fallback"),
        "After a failed rewrite or compilation: raise, or run dense or as traced, with a warning.",
    )
    seed: int = _option(
        0, check.integer(0, high=2**63 - 1), "Seed of `score='random'` and `sampling='bernoulli'`."
    )
    dump_dir: str | None = _option(
        None, check.text(optional=True), "Directory for the graph before and after every pass."
    )


FIELDS: dict[str, Field[Any]] = {spec.name: spec for spec in fields(OptionFields)}


def checked(name: str, value: object) -> Any:
    """Return a setting's value in its normal form.

    Raises:
        OptionError: the value has the wrong type or is out of range.
    """
    return FIELDS[name].metadata["check"].apply(name, value)
