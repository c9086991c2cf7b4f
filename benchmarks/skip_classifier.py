"""Fits the classifiers of `policy="skipvar"` to what leaving out scales and rows does to the demo model.

    python -m benchmarks.skip_classifier --n 2400 --device cuda --batch 16 --out scenes_skip.json

Every prompt is drawn dense, without its last 1, 2 and 3 scales, and with conditional rows alone in its last
1, 2 and 3. A way to save passes if SceneEval finds what it finds in the dense image, and the structural
similarity to it is at least `--ssim`. The label of a prompt is the most that can be saved, everything less
passing too. The fit is a multinomial logistic regression on standardised features, penalty |w|^2 / 2 (C = 1).
`options={"policy": "skipvar", "classifier": "scenes_skip.json"}` uses the file.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toprovar_fx.evaluation import score_images
from toprovar_fx.evaluation.fidelity import ssim
from toprovar_fx.options import Options
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.policies.skipvar import SkipVAR
from toprovar_fx.sampling import seed_tensor
from toprovar_fx.scenes import eval_prompts
from toprovar_fx.scenes.prompts import EvalPrompt

MOST = 3


@dataclass
class Sample:
    """One prompt: its features, and how many scales can be skipped or run without unconditional rows."""

    features: tuple[float, float]
    skip: int
    uncond: int


@torch.no_grad()
def draw(pipe: InfinityPipeline, prompts: Sequence[EvalPrompt], seed: int, conditional: int) -> list[Tensor]:
    """The code sum after every scale; the last `conditional` scales run conditional rows alone."""
    text = pipe.encode_prompts([prompt.text for prompt in prompts])
    config, scales = pipe.config, len(pipe.schedule)
    seeds = seed_tensor(seed, len(prompts), pipe.device)
    loop = pipe.begin(text, seeds, config.cfg, config.tau, config.top_p)
    sums = []
    for scale in range(scales):
        loop.run_scale(scale, conditional_only=scale >= scales - conditional)
        sums.append(loop.summed)
    return sums


@torch.no_grad()
def observe(pipe: InfinityPipeline, prompts: Sequence[EvalPrompt], seed: int, least: float) -> list[Sample]:
    """Features and labels of a batch of prompts; image i uses `seed + i`."""
    dense = draw(pipe, prompts, seed, 0)
    policy = SkipVAR(Options(policy="skipvar"), pipe.schedule, len(prompts), None)  # type: ignore[arg-type]
    for scale, summed in enumerate(dense):
        policy.observe_codes(scale, summed, pipe.vae.decode)
    assert policy.features is not None
    whole = pipe.decode(dense[-1]).cpu()
    wanted = np.asarray(score_images(whole.numpy(), prompts))

    def passes(codes: Tensor) -> np.ndarray:
        images = pipe.decode(codes).cpu()
        scored = np.asarray(score_images(images.numpy(), prompts)) == wanted
        return scored & (ssim(images, whole).numpy() >= least)

    skips = [passes(dense[-1 - count]) for count in range(1, MOST + 1)]
    unconds = [passes(draw(pipe, prompts, seed, count)[-1]) for count in range(1, MOST + 1)]
    labels = zip(policy.features, _most(skips), _most(unconds), strict=True)
    return [Sample(features, skip, uncond) for features, skip, uncond in labels]


def _most(passed: Sequence[np.ndarray]) -> list[int]:
    """Per image, how many of the ways pass before the first that does not."""
    return np.cumprod(np.stack(passed), 0).sum(0).tolist()


def fit(features: Sequence[Sequence[float]], labels: Sequence[int]) -> dict[str, Any]:
    """A classifier as it is written to the file, and its accuracy on its own samples."""
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
    found = (scaled @ weight.T + bias).argmax(1) == target
    return {
        "classes": classes,
        "coefficients": weight.detach().tolist(),
        "intercepts": bias.detach().tolist(),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "samples": len(labels),
        "samples_by_class": {str(label): count for label, count in sorted(Counter(labels).items())},
        "accuracy": found.double().mean().item(),
    }


def main() -> int:
    """Draw, fit and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=2400, help="prompts")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the prompts (0 are those of `eval`) and images"
    )
    parser.add_argument("--ssim", type=float, default=0.84, help="least similarity to the dense image")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    arguments = parser.parse_args()
    pipe = InfinityPipeline.from_pretrained(arguments.model, device=arguments.device)
    prompts, samples = eval_prompts(arguments.n, seed=arguments.seed), []
    for start in range(0, len(prompts), arguments.batch):
        group = prompts[start : start + arguments.batch]
        samples += observe(pipe, group, arguments.seed * 1_000_000 + start, arguments.ssim)
        print(f"{len(samples)} of {len(prompts)}", flush=True)
    kept = [sample for sample in samples if not sample.skip] or samples
    content = {
        "source": f"benchmarks/skip_classifier.py on {arguments.model}",
        "settings": {
            "n": arguments.n,
            "seed": arguments.seed,
            "ssim": arguments.ssim,
            "torch": torch.__version__,
        },
        "features": ["gradient_change", "high_frequency_share"],
        "skip": fit([sample.features for sample in samples], [sample.skip for sample in samples]),
        "uncond": fit([sample.features for sample in kept], [sample.uncond for sample in kept]),
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    shown = {stage: content[stage]["samples_by_class"] for stage in ("skip", "uncond")}
    print(json.dumps({"out": str(arguments.out), **shown}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
