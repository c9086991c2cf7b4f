"""The backend's options: one frozen, hashable record, validated when it is made.

``torch.compile(model, backend="toprovar", options={"preset": "fast", "tau": 0.5})`` hands the mapping to
:meth:`Options.parse`. Scales and layers count from 0; a negative index counts from the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from . import option_checks as check
from .calibration.use import Calibrated
from .criteria.score_registry import Score
from .criteria.weighing import Weighing
from .errors import OptionError, nearest
from .extension_use import Extensions
from .option_conflicts import refuse_conflicts
from .option_fields import FIELDS, UNSET, OptionFields, checked
from .option_profile import contradiction, policy_name, profile_values
from .option_sizes import resolve_index
from .option_tables import options_table, presets_table
from .policies.policy import Policy
from .policies.registry import BY_CRITERION, POLICIES
from .preset_files import SUFFIX, read_preset
from .presets import DEFAULT_PRESET, PRESETS

__all__ = ["Options", "options_table", "presets_table"]

# What a profile does not say is as in the bare fields.
_PROFILE_PRESET = "criterion"
# How a graph is compiled and run, whatever is pruned in it.
_EXECUTION = (
    *("passes", "lowering", "unit", "step_sizes", "step_code", "cuda_graphs"),
    *("verify", "strict", "on_error", "seed", "dump_dir"),
)


@dataclass(frozen=True, kw_only=True)
class Options(OptionFields):
    """All settings of the backend.

    Every field's ``metadata`` holds ``help``, ``values`` (the valid values in words) and ``default``. Two
    records are equal, and hash equally, when their settings are equal whatever preset they came from.

    Raises:
        OptionError: A value has the wrong type or is out of range, or two values contradict each other.
    """

    # What the names above stand for, so that records that mean different functions are not equal.
    extensions: Extensions = field(init=False, repr=False)
    # The model and schedule that the profile is of.
    calibrated: Calibrated | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Fill unset fields from the preset and the profile, normalise and check every value."""
        bound, carried, calibrated = profile_values(self.profile)
        default = DEFAULT_PRESET if calibrated is None else _PROFILE_PRESET
        preset = default if self.preset is UNSET else self.preset
        base = dict(PRESETS[checked("preset", preset)])
        base.update(POLICIES.find("policy", policy_name(self.policy, self.profile, bound)).constants)
        if isinstance(self.budget, (int, float, str)):
            # A budget solves the ratios that the preset would have given.
            base.pop("keep", None)
        for name, spec in FIELDS.items():
            value = getattr(self, name)
            if value is UNSET:
                fallback = carried.get(name, spec.metadata["default"])
                value = preset if name == "preset" else base.get(name, bound.get(name, fallback))
            value = checked(name, value)
            if name in bound and value != bound[name]:
                raise contradiction(self.profile, name, value, bound[name])
            object.__setattr__(self, name, value)
        object.__setattr__(self, "calibrated", calibrated)
        object.__setattr__(
            self,
            "extensions",
            Extensions.named(self.policy, self.score, self.passes, self.cache_policy),
        )
        refuse_conflicts(self)

    def __hash__(self) -> int:
        """Equal for equal settings; computed once, for every call of a compiled graph asks for it."""
        known: int | None = self.__dict__.get("_hash")
        if known is None:
            known = hash(tuple(getattr(self, each.name) for each in fields(self) if each.compare))
            object.__setattr__(self, "_hash", known)
        return known

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the names; what they stand for is looked up where the record is read."""
        return Options.parse, (self.as_dict(),)

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
            if name not in FIELDS:
                suggestion = nearest(name, FIELDS)
                expected = "the name of an option" if suggestion else f"one of {', '.join(FIELDS)}"
                hint = f"; nearest valid: {suggestion}" if suggestion else ""
                raise OptionError(f"unknown option {check.shown(name)}: expected {expected}{hint}")
        return cls(**options)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, object]:
        """Return all settings; ``Options.parse`` of the result, also after JSON, equals this record."""
        values = {name: getattr(self, name) for name in FIELDS}
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
    def by_score(self) -> bool:
        """Whether `score` chooses a layer's tokens, and nothing that the policy saw of other layers."""
        return self.by_criterion or self.deciding.by_options

    @property
    def scoring(self) -> Score:
        """What `score` stands for."""
        return self.extensions.score

    @property
    def weighing(self) -> Weighing:
        """What counts the tokens of a layer (eqs. 5 and 6)."""
        return Weighing(
            cfg_rows=self.cfg_rows,
            keep_low=self.scoring.keeps_low(self.keep_low),
            normalise=self.normalise,
            alpha_min=self.alpha_min,
            alpha_max=self.alpha_max,
            batch_rule=self.batch_rule,
        )

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

    @property
    def by_entropies(self) -> bool:
        """Whether D, R and K are not given but follow from what is measured of the entropies."""
        return self.by_criterion and not self.explicit and not self.compacts

    @property
    def ranks_from_before(self) -> bool:
        """Whether entropies of the scale before rank the tokens."""
        return self.score == "entropy" and self.entropy_source == "previous_scale"

    @property
    def ranks_by_dense_layer(self) -> bool:
        """Whether entropies of the last layer before that ran whole, at the same scale, rank the tokens."""
        return self.score == "entropy" and self.entropy_source == "dense_layer"

    @property
    def foreseen(self) -> bool:
        """Whether nothing that is measured decides which layers run on how many tokens."""
        if not self.by_score or self.compacts or self.budget is not None:
            return False
        given = self.keep is not None and self.sampling == "topk" and self.scale_exit != "depth"
        return given or not self.prunes

    @cached_property
    def unpruned(self) -> Options:
        """How a program of these settings runs where nothing is pruned, skipped or compacted."""
        return Options.parse({"preset": "lossless", **{name: getattr(self, name) for name in _EXECUTION}})

    def runs_steps(self, suited: bool) -> bool:
        """Whether a scale step is to run as one call.

        Args:
            suited: whether `unit="auto"` takes the step: it pays on CUDA, where launching the kernels of a
                block one by one takes longer than running them, and where caches stay in place.
        """
        return self.unit == "step" or (self.unit == "auto" and self.gate == "host" and suited)

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
