"""What the criterion would have decided for an image, replayed on the entropies of its dense generation.

The decisions are the controller's own: this module asks it as the gates do. Up to the depth D an online
generation is dense too, so D is exactly the online one, and so is R where its scale lies before D. Behind D
the entropies of a pruned generation differ from the dense ones; they rank tokens, and enter K only through
the mean of P_keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import OptionError
from ..options import Options
from ..runtime.controller import Controller
from ..runtime.generation import Generation
from ..schedules import Schedule

Place = tuple[int, int]


@dataclass(frozen=True)
class Decisions:
    """What the criterion decides for one image.

    Attributes:
        depth: D, or None if rho never crossed.
        scope: R by layer; 1 where it is not measured.
        kept: K by (scale, layer), L where nothing is pruned; without the scales that are not run.
    """

    depth: int | None
    scope: tuple[float, ...]
    kept: Mapping[Place, int]


def refuse_unreplayable(options: Options) -> None:
    """Refuse options whose decisions do not follow from entropies alone, or leave nothing to decide.

    Raises:
        OptionError: `keep`, `budget`, a cache policy or `guidance_until` is given, a score that reads hidden
            states, or another policy.
    """
    if not options.by_criterion:
        raise OptionError(
            f"policy={options.policy!r}: does not decide by entropies alone, and profiles hold nothing else; "
            "expected 'toprovar' or 'random'; nearest valid: policy='toprovar'"
        )
    if options.compacts or options.guidance_until is not None:
        name = "cache_policy" if options.compacts else "guidance_until"
        raise OptionError(
            f"{name}={getattr(options, name)!r}: changes what entropies are measured over, expected whole "
            "caches and all rows to calibrate; nearest valid: cache_policy='none', guidance_until=None"
        )
    if options.keep is not None:
        raise OptionError(
            "keep: the ratios are given, so there is nothing to calibrate, expected none; "
            "nearest valid: preset='criterion'"
        )
    if options.budget is not None:
        raise OptionError(
            f"budget='{options.budget:g}x': solved by the prices of every generation, expected none to "
            "calibrate; nearest valid: budget=None"
        )
    if options.score not in ("entropy", "random"):
        raise OptionError(
            f"score={options.score!r}: may read hidden states, which a profile does not hold; expected "
            "'entropy' or 'random'; nearest valid: score='entropy'"
        )


def replay(
    options: Options,
    schedule: Schedule,
    layers: int,
    maps: Mapping[Place, Tensor],
    token_ratios: Mapping[int, float],
) -> Decisions:
    """Ask the controller what it decides for one image.

    Args:
        options: the criterion, see `refuse_unreplayable`.
        schedule: the scales.
        layers: number of layers.
        maps: entropies ``[R, L]`` in nats of the image's rows, by (scale, layer), on the CPU.
        token_ratios: R by layer where it is read off the tokens (`scope_of="tokens"`), else empty.
    """
    if token_ratios:
        values = tuple(token_ratios.get(layer, 1.0) for layer in range(layers))
        options = replace(options, layer_scope="fixed", scope_values=values)
    generation = Generation(schedule, 1)
    controller = generation.controller(options, layers)
    rows = next(iter(maps.values())).shape[0] if maps else 1
    kept: dict[Place, int] = {}
    for scale, tokens in enumerate(schedule.tokens):
        if not generation.begin_scale(scale):
            break
        hidden = torch.zeros(rows, tokens, 1)
        for layer in range(layers):
            kept[scale, layer] = _run_layer(controller, layer, hidden, maps.get((scale, layer)))
    if generation.exited_at is None:
        controller.end_scale()
    controller.settle()
    scope = tuple(controller.ledger.detail.get(layer, 1.0) for layer in range(layers))
    return Decisions(controller.depth, options.scope_values or scope, kept)


def _run_layer(controller: Controller, layer: int, hidden: Tensor, nats: Tensor | None) -> int:
    """Ask what the gates of a layer ask, and tell the controller what they would; returns K."""
    tokens = hidden.shape[1]
    keep = None
    count = tokens
    if controller.prunes(layer):
        plan = controller.plan(layer, hidden)
        count, keep = plan.count, plan.keep
    if count and nats is not None and controller.taps(layer):
        if keep is None:
            controller.observe(layer, nats, None, tokens)
        else:
            controller.observe(layer, nats.gather(1, keep), keep, tokens)
    options = controller.options
    whole_cache = options.pruned_kv == "keep" or options.entropy_source == "same_layer"
    cached = tokens if whole_cache and count else count
    controller.finish(layer, hidden, hidden, cached, whole=count == tokens)
    return count
