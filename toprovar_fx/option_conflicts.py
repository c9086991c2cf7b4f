"""Settings that contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import option_checks as check
from .errors import OptionError
from .option_fields import FIELDS

if TYPE_CHECKING:
    from .options import Options


def refuse_conflicts(options: Options) -> None:
    """Refuse settings that are valid one by one and not together.

    Raises:
        OptionError: two values contradict each other.
    """
    if options.alpha_min > options.alpha_max:
        raise check.reject(
            "alpha_min", options.alpha_min, f"at most alpha_max={options.alpha_max}", options.alpha_max
        )
    if options.budget is not None and options.keep is not None:
        raise OptionError(
            f"budget='{options.budget:g}x': expected no keep ratios besides it; nearest valid: keep=None"
        )
    if options.guidance_until == 0:
        raise OptionError(
            "guidance_until=0: expected a scale after the first, which always runs with all its rows; "
            "nearest valid: guidance_until=1, or no guidance: cfg=1"
        )
    if options.cache_budget is not None and not options.compacts:
        raise OptionError(
            f"cache_budget={options.cache_budget}: expected a cache_policy that takes rows out; "
            "nearest valid: cache_policy='scalekv'"
        )
    given = options.classifier != FIELDS["classifier"].metadata["default"]
    if given and "classifier" not in options.deciding.constants:
        raise OptionError(
            f"classifier={options.classifier!r}: expected policy='skipvar', which alone reads it, "
            f"not policy={options.policy!r}"
        )
    if (options.compacts or options.guidance_until is not None) and options.calibrated is not None:
        name = "cache_policy" if options.compacts else "guidance_until"
        raise OptionError(
            f"{name}={getattr(options, name)!r}: expected none with a profile, whose statistics are of "
            "whole caches and all rows; nearest valid: no profile"
        )
    if options.depth == "fixed" and options.depth_scale is None:
        raise OptionError("depth='fixed': expected depth_scale to be set; nearest valid: depth='online'")
    if options.depth_scale is not None and options.depth != "fixed":
        raise OptionError(
            f"depth_scale={options.depth_scale}: expected depth='fixed', not depth={options.depth!r}"
        )
    if options.scope_values is not None and options.layer_scope != "fixed":
        raise OptionError(
            f"scope_values: expected layer_scope='fixed', not layer_scope={options.layer_scope!r}"
        )
    if options.layer_scope == "fixed" and options.scope_values is None:
        raise OptionError(
            "layer_scope='fixed': expected scope_values to be set; nearest valid: layer_scope='online'"
        )
    if options.ranking_depth is not None and options.entropy_source != "previous_scale":
        raise OptionError(
            f"ranking_depth={options.ranking_depth}: expected entropy_source='previous_scale', "
            f"not entropy_source={options.entropy_source!r}"
        )
    if (
        options.entropy_source == "same_layer"
        and options.scoring.reads_entropy
        and options.score != "entropy"
    ):
        raise OptionError(
            f"score={options.score!r}: expected score='entropy' with entropy_source='same_layer', "
            "whose graph selects the tokens itself; nearest valid: entropy_source='dense_layer'"
        )
    if options.unit != "step":
        needs = f"expected unit='step', not unit={options.unit!r}"
        if options.cuda_graphs is True:
            raise OptionError(f"cuda_graphs=True: {needs}")
        if options.step_sizes == "static":
            raise OptionError(f"step_sizes='static': {needs}")
        if options.step_code == "fused":
            raise OptionError(f"step_code='fused': {needs}")
    if options.deciding.granularity == "sublayer":
        _refuse_entropies(options)
    if options.scale_exit == "depth" and options.depth == "off":
        raise OptionError("scale_exit='depth': expected depth='online' or depth='fixed', not depth='off'")


def _refuse_entropies(options: Options) -> None:
    """Refuse settings that read entropies where not everything that is decided about has some."""
    scope = options.layer_scope == "online" and options.scope_of == "entropy_map"
    for name, reads, valid in (
        ("score", options.scoring.reads_entropy, "frequency"),
        ("depth", options.prune_scales and options.depth == "online", "off"),
        ("layer_scope", options.prune_layers and scope, "off"),
    ):
        if reads:
            raise OptionError(
                f"{name}={getattr(options, name)!r}: expected one that reads no entropies with "
                f"policy={options.policy!r}, whose sublayers have none of their own; "
                f"nearest valid: {name}={valid!r}"
            )
