"""What the search may choose: how tokens are ranked, whether the last scale runs, where the tokens go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

# Earlier scales cost little and decide the layout of the image.
PRUNED_SCALES = (-3, -2, -1)
LEAST_SHARE = 0.02
# Where a search begins: the places of `balanced` and `fast`, ranked by entropies and by frequency.
KNOWN: tuple[Mapping[str, object], ...] = tuple(
    {**ranking, **places}
    for places in (
        {"run_last": True, "weight_3": 1.0, "weight_2": 0.5416, "weight_1": 0.1083},
        {"run_last": False, "weight_3": 1.0, "weight_2": 0.1596},
    )
    for ranking in ({"score": "entropy", "ranking_depth": 0.615}, {"score": "frequency"})
)


@dataclass(frozen=True)
class Point:
    """One point of the space.

    Attributes:
        score: the token score, "entropy" or "frequency".
        ranking_depth: relative depth of the layer whose entropies rank, for "entropy" alone.
        run_last: whether the last scale runs.
        weights: shares of the tokens of `PRUNED_SCALES` relative to each other; the budget scales them.
    """

    score: str
    ranking_depth: float | None
    run_last: bool
    weights: tuple[float, ...]

    @staticmethod
    def suggested(trial: optuna.Trial | optuna.trial.FrozenTrial) -> Point:
        """The point that the sampler proposes, or proposed."""
        score = trial.suggest_categorical("score", ("entropy", "frequency"))
        depth = trial.suggest_float("ranking_depth", 0.3, 0.9) if score == "entropy" else None
        run_last = trial.suggest_categorical("run_last", (True, False))
        weights = [trial.suggest_float(f"weight_{-at}", 0.05, 1.0, log=True) for at in PRUNED_SCALES[:-1]]
        weights.append(trial.suggest_float("weight_1", 0.05, 1.0, log=True) if run_last else 0.0)
        return Point(score, depth, run_last, tuple(weights))

    @property
    def base(self) -> dict[str, object]:
        """The options but for the keep ratios."""
        options: dict[str, object] = {
            "preset": "criterion",
            "protected_layers_first": 0,
            "protected_layers_last": 0,
            "score": self.score,
        }
        if self.ranking_depth is not None:
            options |= {"entropy_source": "previous_scale", "ranking_depth": self.ranking_depth}
        if not self.run_last:
            options["scale_exit"] = -1
        return options

    def shares(self, factor: float) -> dict[int, float]:
        """Keep ratios of the scales that run, for a factor that the budget decides."""
        return {
            scale: round(min(1.0, max(LEAST_SHARE, factor * weight)), 4)
            for scale, weight in zip(PRUNED_SCALES, self.weights, strict=True)
            if scale != -1 or self.run_last
        }

    def options(self, factor: float) -> Mapping[str, object]:
        """All options."""
        return {**self.base, "keep": self.shares(factor)}
