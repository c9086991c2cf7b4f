"""The price of a plan before it runs: kept tokens by scale and layer, for a whole schedule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ..cost.expressions import Cost
from ..cost.generation import WHOLE, GenerationPrice, ScalePlan, StepGraphs, price_scales
from ..cost.scale_sizes import ScaleSizes
from ..errors import OptionError
from ..options import Options
from ..schedules import Schedule
from .taps import ranking_taps

Place = tuple[int, int]


def price_plan(
    step: StepGraphs,
    options: Options,
    schedule: Schedule,
    sizes: ScaleSizes,
    kept: Mapping[Place, int],
    tapped: Collection[Place] | None = None,
) -> GenerationPrice:
    """Price a generation in which layers keep `kept` tokens and all other places all.

    Args:
        step: the graphs.
        options: they say which entropies the places in `kept` are ranked by.
        schedule: the scales; all are run.
        sizes: sizes of the graphs' inputs at every scale.
        kept: K by (scale, layer).
        tapped: (scale, layer) of the layers whose entropies are measured; None: those that rank `kept`.

    Raises:
        OptionError: a place or a count that does not exist.
    """
    scales, tokens, layers = range(len(schedule)), schedule.tokens, max(step.layers) + 1
    for (scale, layer), count in kept.items():
        if scale not in scales or layer not in step.layers or not 0 <= count <= tokens[scale]:
            most = tokens[scale] if scale in scales else "L"
            raise OptionError(
                f"kept[{scale}, {layer}]={count}: expected a scale below {len(schedule)}, a layer below "
                f"{layers} and 0 to {most} tokens"
            )

    def prunes(scale: int, layer: int) -> bool:
        return scale in scales and kept.get((scale, layer), tokens[scale]) < tokens[scale]

    def plan(scale: int) -> ScalePlan:
        if tapped is None:
            measured = ranking_taps(
                options,
                scale,
                layers,
                lambda layer: prunes(scale, layer),
                lambda layer: prunes(scale + 1, layer),
            )
        else:
            measured = frozenset(layer for at, layer in tapped if at == scale)
        return ScalePlan({layer: count for (at, layer), count in kept.items() if at == scale}, measured)

    def price(plan_of: Callable[[int], ScalePlan]) -> tuple[Cost, ...]:
        return tuple(price_scales(step, scales, tokens, sizes.at, plan_of))

    return GenerationPrice(price(plan), price(lambda scale: WHOLE))
