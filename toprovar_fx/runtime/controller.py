"""The controller of one compiled model in one generation: it reads the entropies and answers the gates.

Causality decides what it may use: rho_s exists only after scale s has run, a layer's entropies only after
that layer's attention. So depth is decided for the scales after the one it was read at, and a pruned layer is
ranked by a map that is already there (`entropy_source`).
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..criteria.depth import depth_from_ratios, join_depths, low_entropy_ratio
from ..criteria.restore import restore_delta, upsample_map
from ..criteria.rows import join_cfg_rows
from ..criteria.scope import layer_detail, sigma_ratio
from ..options import Options, resolve_index
from .generation import Generation
from .layer_plan import LayerPlan, LayerQuestion, plan_layer, scatter_rows
from .ledger import Ledger

log = logging.getLogger(__name__)


@dataclass
class _Map:
    """A token map and the scale it was measured at."""

    scale: int
    values: Tensor


class Controller:
    """Decides for every layer and scale of one generation.

    Attributes:
        options: the settings.
        layers: number of layers of the model.
        depth: D, or None as long as it is not known.
        ledger: what was run, for the report.
    """

    def __init__(self, options: Options, generation: Generation) -> None:
        self.options, self.layers = options, 0
        self.ledger = Ledger()
        self._generation = generation
        self._scales = len(generation.schedule)
        self.depth: int | None = options.depth_scale if options.depth == "fixed" else None
        if self.depth is not None:
            self.depth = resolve_index("depth_scale", self.depth, self._scales)
        # From the end, a short schedule simply starts at its first scale.
        self._first = (
            options.min_scale if options.min_scale >= 0 else max(0, self._scales + options.min_scale)
        )
        self._representative = max(0, round(options.representative_scale * self._scales) - 1)
        self._exit = self._exit_scale()
        self._rho: list[Tensor] = []
        self._rho_by_scale: dict[int, list[list[float]]] = {}
        self._entropy: dict[int, _Map] = {}
        self._latest: int | None = None
        self._detail: dict[int, float] = {}
        self._delta: dict[int, _Map] = {}
        self._dropped: dict[int, int] = {}
        self._plans: dict[int, LayerPlan] = {}
        self._watched: frozenset[int] = frozenset()

    def adopt(self, layers: int) -> None:
        """Learn the number of layers of the model, when its first scale step runs."""
        self.layers = layers
        self._watched = self._depth_layers()

    def _exit_scale(self) -> int | None:
        wanted = self.options.scale_exit
        return resolve_index("scale_exit", wanted, self._scales) if isinstance(wanted, int) else None

    def _depth_layers(self) -> frozenset[int]:
        wanted = self.options.depth_layers
        if wanted == "all":
            return frozenset(range(self.layers))
        if wanted == "late":
            return frozenset(range(self.layers * 2 // 3, self.layers))
        return frozenset(resolve_index("depth_layers", layer, self.layers) for layer in wanted)  # type: ignore[arg-type]

    def enter(self) -> None:
        """Note that the current scale runs in a compiled graph."""
        self._generation.enter_compiled()

    # What the generation asks.

    def exits(self, scale: int) -> bool:
        """Whether `scale` and all later ones are not run at all."""
        return self._exits_for_certain(scale) or (
            self.options.scale_exit == "depth" and self._beyond_depth(scale)
        )

    def _exits_for_certain(self, scale: int) -> bool:
        return self._exit is not None and scale >= self._exit

    def end_scale(self) -> None:
        """Close the scale that ran: join its ratios into rho and see whether the depth is reached."""
        scale = self._generation.scale
        if self._rho and self.options.depth == "online" and self.options.prune_scales and self.depth is None:
            images = torch.stack(self._rho).mean(0)
            self._rho_by_scale[scale] = [images.tolist()]
            depths = [
                depth_from_ratios(
                    self._history(image), self.options.tau, self.options.depth_compare, self._first
                )
                for image in range(len(images))
            ]
            self.depth = join_depths(depths)
            self.ledger.rho[scale] = float(images.mean())
        self._rho = []
        self._plans = {}
        self._latest = None
        self.ledger.depth = self.depth

    def _history(self, image: int) -> list[float]:
        never = 2.0 if self.options.depth_compare == "le" else -1.0
        known = {scale: rows[0][image] for scale, rows in self._rho_by_scale.items()}
        return [known.get(scale, never) for scale in range(self._generation.scale + 1)]

    def warn_if_idle(self) -> None:
        """Say loudly that pruning was asked for and no graph could be pruned."""
        if self.options.prunes and not self.ledger.prunable:
            warnings.warn(
                "toprovar: this generation ran without a prunable graph, so nothing was pruned. "
                f"Reasons: {self.ledger.reasons() or 'what was compiled was never traced as a scale step'}. "
                "Compile the module whose forward is one scale step, or see toprovar_fx.explain.",
                RuntimeWarning,
                stacklevel=3,
            )

    # What the gates ask.

    @property
    def scale(self) -> int:
        """The scale that runs."""
        return self._generation.scale

    @property
    def images(self) -> int:
        """B."""
        return self._generation.images

    def prunes(self, layer: int) -> bool:
        """Scale-depth gate: whether `layer` is past the depth, so that it may compute fewer tokens."""
        if not self._is_open(layer):
            return False
        ratio = self._explicit(layer)
        if self.options.keep is not None:
            wanted = ratio is not None and ratio < 1
        else:
            wanted = (self.options.prune_tokens or self.options.layer_skip_below > 0) and self._beyond_depth(
                self.scale
            )
        if wanted and self.options.restore == "cache" and layer not in self._delta:
            return False
        return wanted

    def _is_open(self, layer: int) -> bool:
        """Whether `layer` is none of the protected first and last ones."""
        first, last = self.options.protected_layers_first, self.options.protected_layers_last
        return first <= layer < self.layers - last

    def _explicit(self, layer: int) -> float | None:
        return self.options.keep_ratio(self.scale, layer, self._scales, self.layers)

    def _beyond_depth(self, scale: int) -> bool:
        if not self.options.prune_scales:
            return self.options.prunes and scale >= self._first
        if self.depth is None:
            return False
        return scale > self.depth if self.options.prune_from == "after" else scale >= self.depth

    def plan(self, layer: int, hidden: Tensor) -> LayerPlan:
        """Token gate: K and the keep set of `layer`, decided once per scale."""
        if layer not in self._plans:
            question = LayerQuestion(
                layer=layer,
                scale=self.scale,
                scales=self._scales,
                hidden=hidden,
                images=self.images,
                detail=self._scope(layer),
                entropy=self._ranking(layer),
                ratio=self._explicit(layer),
            )
            self._plans[layer] = plan_layer(self.options, question)
        return self._plans[layer]

    def _scope(self, layer: int) -> float:
        if not self.options.prune_layers or self.options.layer_scope == "off":
            return 1.0
        if self.options.layer_scope == "fixed" and self.options.scope_values is not None:
            return self.options.scope_values[layer % len(self.options.scope_values)]
        return self._detail.get(layer, 1.0)

    def _ranking(self, layer: int) -> Tensor | None:
        """The entropy map [R, L] of the current scale that ranks the tokens of `layer`."""
        source = self.options.entropy_source
        wanted = layer if source == "previous_scale" or self._latest is None else self._latest
        if self.options.ranking_depth is not None:
            wanted = self._ranking_layer()
        found = self._entropy.get(wanted)
        if found is None:
            return None
        sides = self._generation.schedule.sides
        if found.scale == self.scale:
            return found.values
        return upsample_map(found.values, sides[found.scale], sides[self.scale])

    def taps(self, layer: int) -> bool:
        """Entropy tap: whether somebody needs the entropies of `layer` at this scale."""
        options, scale = self.options, self.scale
        if not options.prunes or scale < 1:
            return False
        if (
            options.depth == "online"
            and options.prune_scales
            and self.depth is None
            and options.keep is None
            and scale >= self._first
            and layer in self._watched
        ):
            return True
        scoped = options.layer_scope == "online" and options.prune_layers and options.keep is None
        if scoped and scale == self._representative and options.scope_of == "entropy_map":
            return True
        return options.score == "entropy" and self._ranks_others(layer)

    def _ranking_layer(self) -> int:
        """The one layer whose map ranks the tokens of all."""
        return round((self.options.ranking_depth or 0.0) * (self.layers - 1))

    def _may_prune_next(self, layer: int) -> bool:
        """Whether `layer` may be pruned at the next scale, as far as this scale can know."""
        coming = self.scale + 1
        if coming >= self._scales or self._exits_for_certain(coming) or not self._is_open(layer):
            return False
        if self.options.keep is not None:
            ratio = self.options.keep_ratio(coming, layer, self._scales, self.layers)
            return ratio is not None and ratio < 1
        undecided = self.depth is None and self.options.prune_scales and self.options.depth == "online"
        return self._beyond_depth(coming) or (undecided and self.scale >= self._first)

    def _ranks_others(self, layer: int) -> bool:
        source = self.options.entropy_source
        if source == "previous_scale" and self.options.ranking_depth is None:
            return self._may_prune_next(layer)
        if source == "previous_scale":
            return layer == self._ranking_layer() and any(map(self._may_prune_next, range(self.layers)))
        following = any(self.prunes(later) for later in range(layer + 1, self.layers))
        if not following:
            return False
        if source in ("previous_layer", "same_layer"):
            return source == "previous_layer"
        return not self.prunes(layer) and self.prunes(layer + 1)

    def observe(self, layer: int, entropy: Tensor, keep: Tensor | None, length: int) -> None:
        """Take the entropies [R, L] (or [R, K] of the kept tokens) of `layer` at this scale."""
        if keep is not None:
            entropy = scatter_rows(self._ranking(layer), keep, entropy, length)
        self._entropy[layer] = _Map(self.scale, entropy)
        self._latest = layer
        self.ledger.entropy[self.scale, layer] = entropy.mean()
        if layer in self._watched and self.scale >= self._first:
            ratio = low_entropy_ratio(join_cfg_rows(entropy, self._generation.images, self.options.cfg_rows))
            self._rho.append(ratio)
        if self.scale == self._representative and self.options.scope_of == "entropy_map":
            self._measure_scope(layer, entropy)

    def _measure_scope(self, layer: int, values: Tensor) -> None:
        """R of eq. 4 from the entropy map [R, h*w], or from the tokens [R, L, C]."""
        if values.dim() == 2:
            values = values.unflatten(1, self._generation.schedule.sides[self.scale])
        ratio = sigma_ratio(values, self.options.scope_centre)
        self._detail[layer] = float(layer_detail(ratio, self.options.beta).mean())
        self.ledger.detail[layer] = self._detail[layer]

    def offset(self, layer: int, start: int) -> int:
        """First cache row that `layer` writes: the graph's own start less the rows that pruning left out."""
        return start - self._dropped.get(layer, 0)

    def finish(self, layer: int, before: Tensor, after: Tensor, rows_cached: int, *, whole: bool) -> None:
        """Account for a layer that ran: its cache rows, and its update if `whole` and needed later."""
        missing = before.shape[1] - rows_cached
        if missing:
            self._dropped[layer] = self._dropped.get(layer, 0) + missing
        if whole and self._keeps_updates():
            self._delta[layer] = _Map(self.scale, after - before)
        tokens = self.options.scope_of == "tokens" and self.scale == self._representative
        if tokens and self.options.layer_scope == "online":
            self._measure_scope(layer, after)

    def _keeps_updates(self) -> bool:
        if not self.options.prunes or self.options.restore != "cache" or self.scale + 1 >= self._scales:
            return False
        if self.options.keep is not None:
            return any(
                (ratio := self.options.keep_ratio(scale, layer, self._scales, self.layers)) is not None
                and ratio < 1
                for scale in range(self.scale + 1, self._scales)
                for layer in range(self.layers)
            )
        return self.scale + 1 >= self._first

    def restored(self, layer: int) -> Tensor | None:
        """The update [R, L, C] that pruned tokens of `layer` get, or None for nothing."""
        if self.options.restore != "cache":
            return None
        sides, known = self._generation.schedule.sides, self._delta[layer]
        return restore_delta(known.values, sides[known.scale], sides[self.scale])
