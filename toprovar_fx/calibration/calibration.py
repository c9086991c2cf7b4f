"""Calibration: from dense generations to the decisions that all later ones share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..criteria.scope import layer_detail
from ..errors import ProfileError
from ..options import Options
from ..runtime.generation import Generation
from ..runtime.report import GenerationReport, report_of
from ..schedules import Schedule
from ..version import __version__
from .agreement import agreement, joined_count, joined_depth, joined_scope
from .measuring import measuring
from .profile import Observed, Profile
from .replay import Decisions, Place, refuse_unreplayable, replay
from .statistics import ImageStatistics, Table, measure, rows_of
from .use import BOUND, CARRIED


class Calibration:
    """Collects generations and makes a profile of them.

    Example:
        calibration = toprovar_fx.Calibration({"preset": "criterion"})
        step = torch.compile(model, backend="toprovar", options=calibration.options)
        for prompt in prompts:
            with toprovar_fx.generation(schedule, images=1) as run:
                draw(step, prompt)
            calibration.add(run)
        calibration.profile().save("profile.json")

    Args:
        options: the criterion whose decisions are calibrated; by default the preset "criterion".

    Attributes:
        decisions: of every image so far.
        statistics: of every image so far.
        maps: entropies ``[R, L]`` in nats of the first image, by (scale, layer).

    Raises:
        OptionError: an invalid option, or one that leaves nothing to calibrate.
    """

    def __init__(self, options: Mapping[str, object] | Options | None = None) -> None:
        self._criterion = Options.parse({"preset": "criterion"} if options is None else options)
        refuse_unreplayable(self._criterion)
        self.decisions: list[Decisions] = []
        self.statistics: list[ImageStatistics] = []
        self.maps: dict[Place, Tensor] = {}
        self._schedule: Schedule | None = None
        self._model: tuple[str, int] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options for `torch.compile`: the model runs dense, and every layer tells its entropies."""
        return measuring(self._criterion).as_dict()

    @property
    def images(self) -> int:
        """Number of images so far."""
        return len(self.decisions)

    def add(self, run: Generation | GenerationReport | None) -> None:
        """Take the images of a generation that ran dense with `options`.

        Args:
            run: the generation, or its report.

        Raises:
            ProfileError: no compiled scale step took part, entropies are missing, or it is another model or
                schedule than before.
        """
        report = report_of(run) if isinstance(run, Generation) else run
        ledger = None if report is None else report.controller.ledger
        if report is None or ledger is None or ledger.model is None or not ledger.maps:
            reasons = "" if ledger is None else ledger.reasons()
            why = f"; it stayed dense because: {reasons}" if reasons else ""
            raise ProfileError(
                "nothing was measured in this generation: expected, outside dense(), a scale step that is "
                f"compiled with Calibration.options{why}"
            )
        layers = report.controller.layers
        self._refuse_other(report.schedule, (ledger.model(), layers))
        missing = _missing(report.schedule, layers, ledger.maps)
        if missing:
            scale, layer = missing[0]
            raise ProfileError(
                f"{len(missing)} layers told no entropies, the first at scale {scale}, layer {layer}: "
                "expected all, from a generation that is compiled with Calibration.options"
            )
        maps = {place: nats.detach().float().cpu() for place, nats in ledger.maps.items()}
        of_tokens = self._criterion.scope_of == "tokens" and self._criterion.layer_scope == "online"
        ratios = {layer: ratio.cpu() for layer, ratio in ledger.sigma_ratios.items()} if of_tokens else {}
        for image in range(report.images):
            self._add_image(report.schedule, layers, image, report.images, maps, ratios)

    def _add_image(
        self,
        schedule: Schedule,
        layers: int,
        image: int,
        images: int,
        maps: Mapping[Place, Tensor],
        ratios: Mapping[int, Tensor],
    ) -> None:
        own = {place: rows_of(nats, image, images) for place, nats in maps.items()}
        beta = self._criterion.beta
        detail = {
            layer: float(layer_detail(rows_of(ratio, image, images), beta).mean())
            for layer, ratio in ratios.items()
        }
        self.decisions.append(replay(self._criterion, schedule, layers, own, detail))
        self.statistics.append(measure(self._criterion, schedule, layers, own))
        self.maps = self.maps or {place: nats.clone() for place, nats in own.items()}

    def joined(self) -> Decisions:
        """The decisions for all images: the upper median D, the mean R, the most frequent K past D.

        Raises:
            ProfileError: no image was added.
        """
        if self._schedule is None:
            raise ProfileError("no generation was added: expected at least one image to calibrate with")
        depth = joined_depth([each.depth for each in self.decisions])
        scope = joined_scope(self.decisions)
        kept = {}
        for scale, tokens in enumerate(self._schedule.tokens):
            begun = self._begins(scale, depth)
            runs = any((scale, 0) in each.kept for each in self.decisions)
            if not runs or (begun and self._criterion.scale_exit == "depth"):
                break
            for layer in range(len(scope)):
                kept[scale, layer] = joined_count(self.decisions, (scale, layer)) if begun else tokens
        return Decisions(depth, scope, kept)

    def profile(self) -> Profile:
        """The profile of all images so far.

        Raises:
            ProfileError: no image was added.
        """
        joined = self.joined()
        assert self._schedule is not None
        assert self._model is not None
        model, layers = self._model
        kept = {
            scale: tuple(joined.kept[scale, layer] for layer in range(layers))
            for scale in range(len(self._schedule))
            if self._begins(scale, joined.depth) and (scale, 0) in joined.kept
        }
        settings = self._criterion.as_dict()
        return Profile(
            model=model,
            layers=layers,
            schedule=self._schedule,
            settings=json.loads(json.dumps({name: settings[name] for name in (*BOUND, *CARRIED)})),
            depth=joined.depth,
            scope=joined.scope,
            kept=kept,
            observed=self._observed(joined),
            torch=torch.__version__,
            toprovar_fx=__version__,
        )

    def _begins(self, scale: int, depth: int | None) -> bool:
        """Whether layers may be pruned at a scale, as far as the depth decides."""
        assert self._schedule is not None
        options = self._criterion
        if not options.prune_scales:
            first = options.min_scale if options.min_scale >= 0 else len(self._schedule) + options.min_scale
            return scale >= max(0, first)
        if depth is None:
            return False
        return scale > depth if options.prune_from == "after" else scale >= depth

    def _observed(self, joined: Decisions) -> Observed:
        assert self._schedule is not None
        tables = {
            name: np.stack([getattr(each, name) for each in self.statistics])
            for name in ("entropy_nats", "low_entropy_ratio", "scope")
        }
        watched = self._criterion.layers_for_depth(len(joined.scope))
        rho = tables["low_entropy_ratio"][:, :, watched].mean(2)
        own = agreement(joined, self.decisions, self._schedule)
        scope = np.array([each.scope for each in self.decisions])
        return Observed(
            images=self.images,
            depth=tuple(each.depth for each in self.decisions),
            low_entropy_ratio=_rows(rho),
            attention_entropy_nats=_rows(tables["entropy_nats"].mean(0)),
            attention_entropy_std_nats=_rows(tables["entropy_nats"].std(0)),
            scope=_rows(tables["scope"].mean(0)),
            scope_std=tuple(float(value) for value in scope.std(0)),
            agreement={"depth": own.depth, "roles": own.roles, "kept_tokens": own.kept},
        )

    def _refuse_other(self, schedule: Schedule, model: tuple[str, int]) -> None:
        if self._schedule is None:
            self._schedule, self._model = schedule, model
        if schedule.sides != self._schedule.sides:
            raise ProfileError(
                f"a generation of {len(schedule)} scales up to {schedule.sides[-1]}: expected the schedule "
                f"of the first one, {len(self._schedule)} scales up to {self._schedule.sides[-1]}"
            )
        if self._model is not None and model != self._model:
            raise ProfileError(
                f"a generation of the model {model[0][:12]} of {model[1]} layers: expected the first one's, "
                f"{self._model[0][:12]} of {self._model[1]} layers"
            )


def _missing(schedule: Schedule, layers: int, maps: Mapping[Place, Tensor]) -> list[Place]:
    places = [(scale, layer) for scale in range(1, len(schedule)) for layer in range(layers)]
    return [place for place in places if place not in maps]


def _rows(table: Table) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(None if np.isnan(value) else float(value) for value in row) for row in table)
