"""What ranks the tokens of a layer: scores by name, the built-in ones and those that a user registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._torch_private import version_of
from ..errors import ExtensionError
from ..registry import Registry
from .scores import frequency_score, random_score


@dataclass(frozen=True)
class ScoreContext:
    """Where the tokens stand that a score ranks.

    Attributes:
        layer, layers: index from 0, and their number.
        scale, scales: index from 0, and their number S.
        side: height and width of the scale in tokens; L is their product.
        images: B; R is B, or 2B with guidance, the conditional rows first.
        seed: the option `seed`.
    """

    layer: int
    layers: int
    scale: int
    scales: int
    side: tuple[int, int]
    images: int
    seed: int

    @property
    def stream(self) -> int:
        """A number of this layer and scale alone, for random draws."""
        return self.scale * 1024 + self.layer


ScoreFunction = Callable[[Tensor, Tensor | None, ScoreContext], Tensor | None]


@dataclass(frozen=True)
class Score:
    """A token statistic and what its values mean.

    Attributes:
        name: the value of the option `score`.
        function: (hidden [R, L, C], entropy [R, L] in nats or None, context) -> statistic [R, L], finite and
            not negative; None where it is not known, so that the layer runs whole.
        keeps: which tokens are kept: those of "low" or "high" values, or as the option `keep_low` says.
        reads_entropy: whether attention entropies are to be measured for it.
        summary: one sentence for tables.
        trusted: values are not checked, which would make the host wait for the device.
        reads_hidden: whether the values of `hidden` matter; else the function gets NaN in their place, and
            tokens are chosen before the layers run, once for all images if nothing else is read.
    """

    name: str
    function: ScoreFunction
    keeps: Literal["low", "high", "option"]
    reads_entropy: bool
    summary: str
    trusted: bool = False
    reads_hidden: bool = True

    @property
    def by_place(self) -> bool:
        """Whether where a layer stands is all that the statistic follows from."""
        return not (self.reads_hidden or self.reads_entropy)

    def keeps_low(self, keep_low: bool) -> bool:
        """Whether tokens of low values are kept, given the option `keep_low`."""
        return keep_low if self.keeps == "option" else self.keeps == "low"

    def statistic(
        self, hidden: Tensor, entropy: Tensor | None, context: ScoreContext, check_values: bool = True
    ) -> Tensor | None:
        """Call the function and check what it returns.

        Args:
            hidden: a layer's input, ``[R, L, C]``.
            entropy: the map that is known, ``[R, L]`` in nats, or None.
            context: where the layer stands.
            check_values: also check that values are finite and not negative (not of a trusted score).

        Returns:
            float32, ``[R, L]``, or None where the score is not known.

        Raises:
            ExtensionError: the function returned something else, or wrote to ``hidden``. (In inference
                mode, where that cannot be told, it gets a copy.)
        """
        if not self.reads_hidden:
            hidden = torch.full((), torch.nan, dtype=hidden.dtype, device=hidden.device).expand(hidden.shape)
        version = version_of(hidden)
        if version is None and check_values and not self.trusted:
            hidden = hidden.clone()  # nothing tells there whether the function writes to it
        found = self.function(hidden, entropy, context)
        if version_of(hidden) != version:
            raise ExtensionError(f"score {self.name!r} wrote to hidden: expected that it only reads it")
        if found is None:
            return None
        expected = tuple(hidden.shape[:2])
        if not isinstance(found, Tensor) or tuple(found.shape) != expected:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ExtensionError(f"score {self.name!r} returned {got}: expected a tensor of shape {expected}")
        if found.device != hidden.device:
            raise ExtensionError(f"score {self.name!r} is on {found.device}: expected {hidden.device}")
        if found.is_complex():
            raise ExtensionError(f"score {self.name!r} returned {found.dtype}: expected real numbers")
        found = found.float()
        if check_values and not self.trusted and not bool((torch.isfinite(found) & (found >= 0)).all()):
            raise ExtensionError(
                f"score {self.name!r} at layer {context.layer}, scale {context.scale}: "
                "expected values that are finite and not negative"
            )
        return found


def _entropy(hidden: Tensor, entropy: Tensor | None, context: ScoreContext) -> Tensor | None:
    return entropy


def _frequency(hidden: Tensor, entropy: Tensor | None, context: ScoreContext) -> Tensor:
    return frequency_score(hidden)


def _random(hidden: Tensor, entropy: Tensor | None, context: ScoreContext) -> Tensor:
    row = random_score(context.seed, context.stream, hidden.shape[1], hidden.device)
    return row.expand(hidden.shape[0], -1)


_BUILT_IN = (
    Score("entropy", _entropy, "option", True, "Attention entropy (eq. 2), by `entropy_source`.", True),
    Score("frequency", _frequency, "high", False, "Squared distance from the mean token (FastVAR).", True),
    Score("random", _random, "low", False, "Uniform draws, the control.", True, reads_hidden=False),
)

SCORES: Registry[Score] = Registry("score", {score.name: score for score in _BUILT_IN})
