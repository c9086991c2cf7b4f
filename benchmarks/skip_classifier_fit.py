"""Fits and judges the classifiers of `benchmarks.skip_classifier`, whose docstring says how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toprovar_fx.policies.classifier import Linear

# Of the prompts, for the figures that say how good the classifiers are.
HELD_OUT = 0.25


@dataclass
class Sample:
    """One prompt: its features, and how many scales can be skipped or run without unconditional rows."""

    features: tuple[float, float]
    skip: int
    uncond: int


def fit(features: Sequence[Sequence[float]], labels: Sequence[int]) -> dict[str, Any]:
    """A classifier as it is written to the file."""
    x = torch.tensor(features, dtype=torch.float64)
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-9)
    scaled, classes = (x - mean) / std, sorted(set(labels))
    target = torch.tensor([classes.index(label) for label in labels])
    weight = torch.zeros(len(classes), 2, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = torch.nn.functional.cross_entropy(scaled @ weight.T + bias, target, reduction="sum")
        total = total + weight.square().sum() / 2
        total.backward()
        return total

    optimiser.step(loss)  # type: ignore[arg-type]
    return {
        "classes": classes,
        "coefficients": weight.detach().tolist(),
        "intercepts": bias.detach().tolist(),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "samples": len(labels),
        "samples_by_class": {str(label): count for label, count in sorted(Counter(labels).items())},
    }


def quality(classifier: dict[str, Any], samples: Sequence[Sample], stage: str) -> dict[str, float | int]:
    """How a classifier decides about samples: right, and leaving out more than passes.

    `most_common` is the share that the most common label of these samples would get right.
    """
    linear = Linear(*(classifier[name] for name in ("classes", "coefficients", "intercepts", "mean", "std")))
    decided = np.array([linear.decide(sample.features) for sample in samples])
    labels = np.array([getattr(sample, stage) for sample in samples])
    return {
        "samples": len(samples),
        "accuracy": float((decided == labels).mean()),
        "leaves_out_too_much": float((decided > labels).mean()),
        "mean_decided": float(decided.mean()),
        "most_common": float(max(Counter(labels.tolist()).values()) / len(labels)),
    }


def careful(classifier: dict[str, Any], samples: Sequence[Sample], stage: str, risk: float) -> dict[str, Any]:
    """The classifier with the intercept of class c lowered by c t, for the least t that keeps the risk."""

    def lowered(by: float) -> dict[str, Any]:
        pairs = zip(classifier["classes"], classifier["intercepts"], strict=True)
        return {**classifier, "intercepts": [bias - by * label for label, bias in pairs]}

    least, most = 0.0, 100.0
    if quality(classifier, samples, stage)["leaves_out_too_much"] <= risk:
        return classifier
    for _ in range(40):
        middle = (least + most) / 2
        kept = quality(lowered(middle), samples, stage)["leaves_out_too_much"] <= risk
        least, most = (least, middle) if kept else (middle, most)
    return lowered(most)


def classifiers(samples: Sequence[Sample], risk: float = 1.0) -> dict[str, Any]:
    """Both stages, fitted to the first samples and measured on the others."""
    cut = len(samples) - max(1, round(HELD_OUT * len(samples)))
    found = {}
    for stage in ("skip", "uncond"):
        # The second stage is asked only where the first leaves nothing out.
        asked = [
            [sample for sample in part if stage == "skip" or not sample.skip] or list(part)
            for part in (samples[:cut], samples[cut:])
        ]
        fitted, held_out = asked
        found[stage] = fit([sample.features for sample in fitted], [getattr(one, stage) for one in fitted])
        found[stage] = careful(found[stage], fitted, stage, risk)
        found[stage] |= {"fitted": quality(found[stage], fitted, stage)}
        found[stage] |= {"held_out": quality(found[stage], held_out, stage)}
    return found
