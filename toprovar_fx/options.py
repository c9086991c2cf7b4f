"""The backend's options: one frozen, hashable record, validated when it is made.

``torch.compile(model, backend="toprovar", options={"preset": "fast", "tau": 0.5})`` hands the mapping to
:meth:`Options.parse`. Scales and layers count from 0; a negative index counts from the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from . import option_checks as check
from .cache_policies.registry import CACHE_POLICIES
from .calibration.profile import Profile
from .calibration.use import Calibrated, option_values
from .criteria.score_registry import SCORES, Score
from .declaration import PASSES
from .errors import OptionError, ProfileError, nearest
from .extension_use import Extensions
from .policies.policy import Policy
from .policies.registry import BY_CRITERION, POLICIES
from .preset_files import SUFFIX, read_preset
from .presets import DEFAULT_PRESET, PRESETS


class _Unset:
    """Type of the marker for "not given": the preset fills such a field."""

    def __repr__(self) -> str:
        return "<from preset>"


_UNSET = _Unset()
# What a profile does not say is as in the bare fields.
_PROFILE_PRESET = "criterion"


def _option(default: object, valid: check.Check, text: str, *, compare: bool = True) -> Any:
    metadata = {"default": default, "check": valid, "values": valid.values, "help": text}
    return field(default=_UNSET, metadata=metadata, compare=compare)


@dataclass(frozen=True, kw_only=True)
class Options:
    """All settings of the backend.

    Every field's ``metadata`` holds ``help``, ``values`` (the valid values in words) and ``default``. Two
    records are equal, and hash equally, when their settings are equal whatever preset they came from.

    Raises:
        OptionError: A value has the wrong type or is out of range, or two values contradict each other.
    """

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
    entropy_source: Literal["dense_layer", "previous_layer", "previous_scale", "same_layer"] = _option(
        "dense_layer",
        check.choice("dense_layer", "previous_layer", "previous_scale", "same_layer"),
        "Whose entropies rank a layer's tokens; 'same_layer' prunes cross-attention and FFN only.",
    )
    ranking_depth: float | None = _option(
        None,
        check.number(0, 1, optional=True),
        "With `entropy_source='previous_scale'`: one layer's map ranks all; its share of the depth.",
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
    unit: Literal["block", "step"] = _option(
        "block",
        check.choice("block", "step"),
        "What one call runs: a block, or the whole scale step where its decisions are known before it.",
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
        "After a failed rewrite or compilation: raise, or run dense.",
    )
    seed: int = _option(0, check.integer(0), "Seed of `score='random'` and `sampling='bernoulli'`.")
    dump_dir: str | None = _option(
        None, check.text(optional=True), "Directory for the graph before and after every pass."
    )

    # What the names above stand for, so that records that mean different functions are not equal.
    extensions: Extensions = field(init=False, repr=False)
    # The model and schedule that the profile is of.
    calibrated: Calibrated | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Fill unset fields from the preset and the profile, normalise and check every value."""
        bound, carried, calibrated = self._profile_values()
        default = DEFAULT_PRESET if calibrated is None else _PROFILE_PRESET
        preset = default if self.preset is _UNSET else self.preset  # type: ignore[comparison-overlap]
        base = dict(PRESETS[_checked(_FIELDS["preset"], preset)])
        base.update(POLICIES.find("policy", self._policy_name(bound)).constants)
        if isinstance(self.budget, (int, float, str)):
            # A budget solves the ratios that the preset would have given.
            base.pop("keep", None)
        for name, spec in _FIELDS.items():
            value = getattr(self, name)
            if value is _UNSET:
                fallback = carried.get(name, spec.metadata["default"])
                value = preset if name == "preset" else base.get(name, bound.get(name, fallback))
            value = _checked(spec, value)
            if name in bound and value != bound[name]:
                raise _contradiction(self.profile, name, value, bound[name])
            object.__setattr__(self, name, value)
        object.__setattr__(self, "calibrated", calibrated)
        object.__setattr__(
            self,
            "extensions",
            Extensions.named(self.policy, self.score, self.passes, self.cache_policy),
        )
        self._check_combinations()

    def _policy_name(self, bound: Mapping[str, object]) -> object:
        """The policy that is given, or the profile's, or the default.

        Raises:
            OptionError: another one than the profile was measured with, or one that profiles do not hold.
        """
        default = bound.get("policy", _FIELDS["policy"].metadata["default"])
        name = default if self.policy is _UNSET else _checked(_FIELDS["policy"], self.policy)  # type: ignore[comparison-overlap]
        if bound and name not in BY_CRITERION:
            raise OptionError(
                f"policy={name!r}: expected {' or '.join(map(repr, BY_CRITERION))} with a profile, "
                f"which holds their decisions alone; nearest valid: {BY_CRITERION[0]!r}, or no profile"
            )
        if bound and name != default:
            raise _contradiction(self.profile, "policy", name, default)
        return name

    def _profile_values(self) -> tuple[dict[str, object], dict[str, object], Calibrated | None]:
        """What the profile binds, what it brings along, and what it is of; nothing without one."""
        if self.profile is _UNSET:  # type: ignore[comparison-overlap]
            return {}, {}, None
        name = _checked(_FIELDS["profile"], self.profile)
        if name is None:
            return {}, {}, None
        bound, carried, calibrated = option_values(Profile.load(name), name)
        try:
            for values in (bound, carried):
                values.update({option: _checked(_FIELDS[option], value) for option, value in values.items()})
        except OptionError as error:
            raise ProfileError(f"profile='{name}': settings.{error}") from None
        return bound, carried, calibrated

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the names; what they stand for is looked up where the record is read."""
        return Options.parse, (self.as_dict(),)

    def _check_combinations(self) -> None:
        if self.alpha_min > self.alpha_max:
            raise check.reject(
                "alpha_min", self.alpha_min, f"at most alpha_max={self.alpha_max}", self.alpha_max
            )
        if self.budget is not None and self.keep is not None:
            raise OptionError(
                f"budget='{self.budget:g}x': expected no keep ratios besides it; nearest valid: keep=None"
            )
        if self.guidance_until == 0:
            raise OptionError(
                "guidance_until=0: expected a scale after the first, which always runs with all its rows; "
                "nearest valid: guidance_until=1, or no guidance: cfg=1"
            )
        if self.cache_budget is not None and not self.compacts:
            raise OptionError(
                f"cache_budget={self.cache_budget}: expected a cache_policy that takes rows out; "
                "nearest valid: cache_policy='scalekv'"
            )
        if (self.compacts or self.guidance_until is not None) and self.calibrated is not None:
            name = "cache_policy" if self.compacts else "guidance_until"
            raise OptionError(
                f"{name}={getattr(self, name)!r}: expected none with a profile, whose statistics are of "
                "whole caches and all rows; nearest valid: no profile"
            )
        if self.depth == "fixed" and self.depth_scale is None:
            raise OptionError("depth='fixed': expected depth_scale to be set; nearest valid: depth='online'")
        if self.depth_scale is not None and self.depth != "fixed":
            raise OptionError(
                f"depth_scale={self.depth_scale}: expected depth='fixed', not depth={self.depth!r}"
            )
        if self.scope_values is not None and self.layer_scope != "fixed":
            raise OptionError(
                f"scope_values: expected layer_scope='fixed', not layer_scope={self.layer_scope!r}"
            )
        if self.layer_scope == "fixed" and self.scope_values is None:
            raise OptionError(
                "layer_scope='fixed': expected scope_values to be set; nearest valid: layer_scope='online'"
            )
        if self.ranking_depth is not None and self.entropy_source != "previous_scale":
            raise OptionError(
                f"ranking_depth={self.ranking_depth}: expected entropy_source='previous_scale', "
                f"not entropy_source={self.entropy_source!r}"
            )
        if self.entropy_source == "same_layer" and self.scoring.reads_entropy and self.score != "entropy":
            raise OptionError(
                f"score={self.score!r}: expected score='entropy' with entropy_source='same_layer', "
                "whose graph selects the tokens itself; nearest valid: entropy_source='dense_layer'"
            )
        if self.unit == "block" and self.cuda_graphs is True:
            raise OptionError("cuda_graphs=True: expected unit='step', not unit='block'")
        if self.unit == "block" and self.step_sizes == "static":
            raise OptionError("step_sizes='static': expected unit='step', not unit='block'")
        if self.unit == "block" and self.step_code == "fused":
            raise OptionError("step_code='fused': expected unit='step', not unit='block'")
        if self.deciding.granularity == "sublayer":
            self._refuse_entropies()
        if self.scale_exit == "depth" and self.depth == "off":
            raise OptionError("scale_exit='depth': expected depth='online' or depth='fixed', not depth='off'")

    def _refuse_entropies(self) -> None:
        """Refuse settings that read entropies where not everything that is decided about has some."""
        scope = self.layer_scope == "online" and self.scope_of == "entropy_map"
        for name, reads, valid in (
            ("score", self.scoring.reads_entropy, "frequency"),
            ("depth", self.prune_scales and self.depth == "online", "off"),
            ("layer_scope", self.prune_layers and scope, "off"),
        ):
            if reads:
                raise OptionError(
                    f"{name}={getattr(self, name)!r}: expected one that reads no entropies with "
                    f"policy={self.policy!r}, whose sublayers have none of their own; "
                    f"nearest valid: {name}={valid!r}"
                )

    @classmethod
    def parse(cls, options: Mapping[str, object] | Options | None = None) -> Options:
        """Return options from a mapping; its ``preset`` applies first and its other keys override it.

        Args:
            options: Names to values; None gives the default preset; an ``Options`` is returned as it is.

        Raises:
            OptionError: An unknown name, or a value that is not valid.
        """
        if isinstance(options, Options):
            return options
        if options is None:
            return cls()
        if not isinstance(options, Mapping):
            raise OptionError(f"options={check.shown(options)}: expected a mapping of option names to values")
        named = options.get("preset")
        if isinstance(named, str) and named.endswith(SUFFIX):
            options = {**read_preset(named), **{name: options[name] for name in options if name != "preset"}}
        for name in options:
            if name not in _FIELDS:
                suggestion = nearest(name, _FIELDS)
                expected = "the name of an option" if suggestion else f"one of {', '.join(_FIELDS)}"
                hint = f"; nearest valid: {suggestion}" if suggestion else ""
                raise OptionError(f"unknown option {check.shown(name)}: expected {expected}{hint}")
        return cls(**options)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, object]:
        """Return all settings; ``Options.parse`` of the result, also after JSON, equals this record."""
        values = {name: getattr(self, name) for name in _FIELDS}
        if self.keep is not None:
            values["keep"] = {
                scale: dict(ratio) if isinstance(ratio, tuple) else ratio for scale, ratio in self.keep
            }
        return values

    @property
    def deciding(self) -> type[Policy]:
        """What `policy` stands for."""
        return self.extensions.policy

    @property
    def by_criterion(self) -> bool:
        """Whether the policy answers by options and entropies alone, as whole steps and graphs can too."""
        return self.policy in BY_CRITERION

    @property
    def scoring(self) -> Score:
        """What `score` stands for."""
        return self.extensions.score

    @property
    def rewrites(self) -> bool:
        """Whether anything is to be put into the graph that the model's user can notice."""
        return self.prunes or self.compacts or self.guidance_until is not None or bool(self.passes)

    @property
    def compacts(self) -> bool:
        """Whether a cache policy takes rows out of the caches."""
        return self.cache_policy != "none"

    @property
    def prunes(self) -> bool:
        """Whether any setting can make the result differ from the dense model's."""
        axes = self.prune_scales or self.prune_layers or self.prune_tokens
        return axes or self.scale_exit is not None or self.explicit or self.deciding.skips

    @property
    def explicit(self) -> bool:
        """Whether keep ratios are given or solved for, so that neither D nor eq. 6 decides them."""
        return self.keep is not None or self.budget is not None

    def layers_for_depth(self, layers: int) -> list[int]:
        """Return the layers that `depth_layers` names, of a model of ``layers``."""
        wanted = self.depth_layers
        if isinstance(wanted, str):
            return list(range(layers * 2 // 3 if wanted == "late" else 0, layers))
        return sorted({resolve_index("depth_layers", layer, layers) for layer in wanted})

    def keep_ratio(self, scale: int, layer: int, scales: int, layers: int) -> float | None:
        """Return the explicit keep ratio of a layer at a scale, or None where ``keep`` says nothing.

        Where ``keep`` names one scale or layer twice, as 12 and as -1 of 13, the index from the start holds.

        Args:
            scale: Scale index from 0.
            layer: Layer index from 0.
            scales: Number of scales S of the schedule.
            layers: Number of layers of the model.
        """
        by_scale = self._keep_by_scale
        ratio = by_scale.get(scale, by_scale.get(scale - scales))
        if not isinstance(ratio, dict):
            return ratio
        return ratio.get(layer, ratio.get(layer - layers))

    @cached_property
    def _keep_by_scale(self) -> dict[int, float | dict[int, float]]:
        """`keep` for looking up: it is asked for every layer of every scale, several times."""
        pairs = self.keep or ()
        return {scale: dict(ratio) if isinstance(ratio, tuple) else ratio for scale, ratio in pairs}


def resolve_index(name: str, index: int, count: int) -> int:
    """Turn an option's possibly negative scale or layer index into one from 0 to ``count - 1``.

    Raises:
        OptionError: The index lies outside ``-count .. count - 1``; the message calls it ``name``.
    """
    if not -count <= index < count:
        raise check.reject(
            name, index, f"an index from {-count} to {count - 1}", min(max(index, -count), count - 1)
        )
    return index % count


def options_table() -> str:
    """Return a Markdown table of every option: name, valid values, default, meaning."""
    rows = ["| Option | Values | Default | Meaning |", "|---|---|---|---|"]
    for name, spec in _FIELDS.items():
        values = spec.metadata["values"].replace("|", "\\|")
        rows.append(f"| `{name}` | {values} | `{_default_text(spec)}` | {spec.metadata['help']} |")
    return "\n".join(rows) + "\n"


def presets_table() -> str:
    """Return a Markdown table of the presets and what each changes from the defaults."""
    rows = ["| Preset | Changes |", "|---|---|"]
    for name, values in PRESETS.items():
        changes = ", ".join(f"`{option}={value!r}`" for option, value in values.items())
        rows.append(f"| `{name}` | {changes or 'the defaults'} |")
    return "\n".join(rows) + "\n"


def _default_text(spec: Field[Any]) -> str:
    default = spec.metadata["default"]
    return f"{default:.4g}" if isinstance(default, float) else repr(default)


def _checked(spec: Field[Any], value: object) -> Any:
    return spec.metadata["check"].apply(spec.name, value)


def _contradiction(profile: str | None, name: str, value: object, bound: object) -> ProfileError:
    return ProfileError(
        f"{name}={check.shown(value)}: the profile '{profile}' holds for {name}={check.shown(bound)} alone; "
        f"nearest valid: {check.shown(bound)}, or calibrate again with the other value"
    )


_FIELDS: dict[str, Field[Any]] = {spec.name: spec for spec in fields(Options) if spec.init}
