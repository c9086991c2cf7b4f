"""Fits the classifiers of `policy="skipvar"` to what leaving out scales and rows does to the demo model.

    python -m benchmarks.skip_classifier --n 2400 --device cuda --batch 100 --workers 8 --out scenes_skip.json

Every prompt is drawn dense, without its last 1, 2 and 3 scales, and with conditional rows alone in its last
1, 2 and 3. A way to save passes if SceneEval finds what it finds in the dense image, and the structural
similarity to it is at least `--ssim`. The label of a prompt is the most that can be saved, everything less
passing too. The fit is a multinomial logistic regression on standardised features, penalty |w|^2 / 2 (C = 1),
on the first three quarters of the prompts; the last quarter says how good it is. Leaving out more than passes
is worse than leaving out less: intercepts are lowered, class by class, until at most a share `--risk` of the
fitted prompts loses more than passes (1: as published, no weight on either error).
`options={"policy": "skipvar", "classifier": "scenes_skip.json"}` uses the file.

Samples are kept beside the file, in `OUT.samples.jsonl`: the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.skip_classifier_fit import Sample, classifiers
from toprovar_fx.evaluation import score_images
from toprovar_fx.evaluation.fidelity import ssim
from toprovar_fx.evaluation.frontier_store import RowStore
from toprovar_fx.evaluation.study import CHUNK, judges
from toprovar_fx.options import Options
from toprovar_fx.pipeline import InfinityPipeline
from toprovar_fx.policies.skipvar import SkipVAR
from toprovar_fx.sampling import seed_tensor
from toprovar_fx.scenes import eval_prompts
from toprovar_fx.scenes.prompts import EvalPrompt

MOST = 3


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


@torch.inference_mode()
def observe(
    pipe: InfinityPipeline, prompts: Sequence[EvalPrompt], seed: int, least: float, pool: Executor
) -> list[Sample]:
    """Features and labels of a batch of prompts; image i uses `seed + i`."""
    dense = draw(pipe, prompts, seed, 0)
    policy = SkipVAR(Options(policy="skipvar"), pipe.schedule, len(prompts), None)  # type: ignore[arg-type]
    dtype = next(pipe.vae.parameters()).dtype
    for scale, summed in enumerate(dense):
        policy.observe_codes(scale, summed, lambda codes: pipe.vae.decode(codes.to(dtype)))
    assert policy.features is not None
    ways = [dense[-1], *(dense[-1 - count] for count in range(1, MOST + 1))]
    ways += [draw(pipe, prompts, seed, count)[-1] for count in range(1, MOST + 1)]
    images = [pipe.decode(codes) for codes in ways]
    scores = [
        pool.submit(score_images, way[at : at + CHUNK].cpu().numpy(), prompts[at : at + CHUNK])
        for way in images
        for at in range(0, len(prompts), CHUNK)
    ]
    like = [
        np.concatenate([_ssim(way[at : at + CHUNK], images[0][at : at + CHUNK]) for at in _chunks(prompts)])
        for way in images
    ]
    found = np.array([one for score in scores for one in score.result()]).reshape(len(ways), -1)
    passed = (found == found[0]) & (np.stack(like) >= least)
    labels = zip(policy.features, _most(passed[1 : 1 + MOST]), _most(passed[1 + MOST :]), strict=True)
    return [Sample(features, skip, uncond) for features, skip, uncond in labels]


def _chunks(prompts: Sequence[EvalPrompt]) -> range:
    return range(0, len(prompts), CHUNK)


def _ssim(images: Tensor, whole: Tensor) -> np.ndarray[Any, Any]:
    return ssim(images, whole).cpu().numpy()


def _most(passed: np.ndarray[Any, Any]) -> list[int]:
    """Per image, how many of the ways [ways, images] pass before the first that does not."""
    return np.cumprod(passed, 0).sum(0).tolist()


def main(given: Sequence[str] | None = None) -> int:
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
    parser.add_argument(
        "--risk", type=float, default=0.05, help="share of prompts that may lose more than passes"
    )
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that judge images")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="draw no further batch after this time, and fit"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    arguments = parser.parse_args(given)
    if arguments.n < 8:
        parser.error(f"--n is {arguments.n}, expected at least 8: some are held out")
    if not 0 <= arguments.risk <= 1:
        parser.error(f"--risk is {arguments.risk}, expected a share from 0 to 1")
    until = time.monotonic() + arguments.seconds
    pipe = InfinityPipeline.from_pretrained(arguments.model, device=arguments.device)
    settings = {
        "model": arguments.model,
        "seed": arguments.seed,
        "batch": arguments.batch,
        "ssim": arguments.ssim,
        "device": torch.cuda.get_device_name() if pipe.device.type == "cuda" else "cpu",
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
    store = RowStore(arguments.out.with_name(f"{arguments.out.name}.samples.jsonl"), settings)
    prompts = eval_prompts(arguments.n, seed=arguments.seed)
    samples: list[Sample] = []
    with judges(arguments.workers) as pool:
        for start in range(0, len(prompts), arguments.batch):
            group = prompts[start : start + arguments.batch]
            line = store.get(start, f"{len(group)} prompts")
            if line is None:
                if time.monotonic() > until and len(samples) >= 8:
                    break
                seen = observe(pipe, group, arguments.seed * 1_000_000 + start, arguments.ssim, pool)
                line = {"samples": [(*one.features, one.skip, one.uncond) for one in seen]}
                store.add(start, f"{len(group)} prompts", line)
            samples += [
                Sample((change, high), skip, uncond) for change, high, skip, uncond in line["samples"]
            ]
            print(f"{len(samples)} of {len(prompts)}", flush=True)
    content = {
        "source": f"benchmarks/skip_classifier.py on {arguments.model}",
        "settings": {**settings, "n": len(samples), "risk": arguments.risk},
        "features": ["gradient_change", "high_frequency_share"],
        **classifiers(samples, arguments.risk),
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    told = ("samples_by_class", "fitted", "held_out")
    shown = {stage: {name: content[stage][name] for name in told} for stage in ("skip", "uncond")}
    print(json.dumps({"out": str(arguments.out), **shown}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
