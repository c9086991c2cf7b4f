"""`toprovar generate`: draw prompts, alone or dense and pruned side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation import timing
from ..options import Options
from . import arguments as take
from . import figures, sheet, verdict
from .loading import check_dtype, check_model, load
from .output import plan_files, write_png
from .progress import progress
from .values import (
    MODEL,
    check_choice,
    check_device,
    check_prompts,
    check_sampling,
    check_seed,
    parse_options,
    slug,
)
from .variants import Variant, room_for_graphs

if TYPE_CHECKING:
    from ..pipeline import InfinityPipeline, PipelineOutput

DENSE, PRUNED = "dense", "pruned"
COMPARE_ROUNDS = 3


@dataclass(frozen=True)
class Request:
    """What to draw. All of it is checked before a model is loaded.

    Attributes:
        prompts: one image each.
        seed: of the first image; image i uses ``seed + i``.
        preset: of the backend; None is `balanced` when comparing and no compilation otherwise.
        options: `key=value` settings of the backend on top of the preset.
        cfg: guidance strength; None is the model's default.
        tau: sampling temperature; None is the model's default.
        compare: write sheets instead of images.
        against: what dense is timed with in a comparison, `inductor` or `eager`.
        out: a PNG file for one prompt, or a folder.
        model: a shipped model's name, or the path of a checkpoint.
        device: None is CUDA where there is one.
        dtype: of the weights; None is bfloat16 on CUDA, else float32.
    """

    prompts: take.Prompts = None
    seed: take.Seed = 0
    preset: take.Preset = None
    options: take.Settings = None
    cfg: take.Cfg = None
    tau: take.Tau = None
    compare: take.Compare = False
    against: take.Against = "inductor"
    out: take.Out = None
    model: take.Model = MODEL
    device: take.Device = None
    dtype: take.Dtype = None

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        return self.prompts or []


def generate(request: Request) -> dict[str, Any]:
    """Draw and write the images; return what `--json` prints.

    Raises:
        ToProVARError: an input is not valid, or a file cannot be written.
    """
    check_model(request.model)
    check_prompts(request.texts, request.model)
    check_seed(request.seed, len(request.texts))
    check_sampling(request.cfg, request.tau)
    check_choice("against", request.against, ("inductor", "eager"))
    options = parse_options(request.preset, request.options or ())
    device = check_device(request.device)
    check_dtype(request.dtype)
    kind = "-compare" if request.compare else ""
    names = [f"{slug(text)}-{request.seed + index}{kind}" for index, text in enumerate(request.texts)]
    files = plan_files(request.out, names)

    with progress("loading", doing=request.model):
        dense = load(request.model, device, request.dtype, len(request.texts))
    result: dict[str, Any] = {"command": "generate", "model": request.model, "device": device}
    if request.compare:
        return {**result, "images": _compare(request, dense, options, files, device)}
    compiled = bool(options)
    pipe = Variant("pruned", "toprovar", options=options).pipeline(dense) if compiled else dense
    with progress("drawing", doing="compiling first" if compiled else ""):
        output = _draw(pipe, request)
    rows = []
    for index, (file, image) in enumerate(zip(files, figures.images(output), strict=True)):
        write_png(file, image)
        rows.append({**_described(request, index, file), **_figures(output, image, request.texts[index])})
    return {**result, "images": rows}


def _compare(
    request: Request, dense: InfinityPipeline, options: dict[str, Any], files: list[Path], device: str
) -> list[dict[str, Any]]:
    baseline = Variant(DENSE, None if request.against == "eager" else request.against)
    pipes = {
        DENSE: baseline.pipeline(dense),
        PRUNED: Variant(PRUNED, "toprovar", options=options).pipeline(dense),
    }
    outputs: dict[str, PipelineOutput] = {}

    def run(name: str) -> None:
        outputs[name] = _draw(pipes[name], request)

    total = timing.calls(len(pipes), COMPARE_ROUNDS)
    with (
        room_for_graphs(),
        progress("comparing", total, doing="the first call of each compiles") as advance,
    ):
        times = timing.interleave(
            {name: lambda name=name: run(name) for name in pipes},  # type: ignore[misc]
            rounds=COMPARE_ROUNDS,
            device=device,
            on_call=advance,
        )
    speedup = times[PRUNED].speedup_over(times[DENSE])
    rows = []
    for index, (file, prompt) in enumerate(zip(files, request.texts, strict=True)):
        before, after = (figures.images(outputs[name])[index] for name in (DENSE, PRUNED))
        row = {
            **_described(request, index, file),
            "preset": Options.parse(options).preset,
            "against": request.against,
            "dense": _figures(outputs[DENSE], before, prompt),
            "pruned": _figures(outputs[PRUNED], after, prompt),
            "speedup": speedup,
            **_fidelity(before, after),
        }
        for name in pipes:  # the medians of the rounds stand for the single call's time
            row[name]["latency_ms"] = times[name].median_s * 1000
            row[name]["compile_s"] = times[name].compile_s
        row["dense"]["flops"] = figures.dense_flops(outputs[PRUNED])
        maps = figures.keep_maps(outputs[PRUNED], index)
        write_png(file, sheet.compose(_words(row, len(request.texts)), before, after, maps))
        rows.append(row)
    return rows


def _draw(pipe: InfinityPipeline, request: Request) -> PipelineOutput:
    return pipe(list(request.texts), seed=request.seed, cfg=request.cfg, tau=request.tau)


def _described(request: Request, index: int, file: Path) -> dict[str, Any]:
    return {"prompt": request.texts[index], "seed": request.seed + index, "file": str(file)}


def _figures(output: PipelineOutput, image: Any, prompt: str) -> dict[str, Any]:
    passed = verdict.verdicts(image[None], prompt)
    return {
        "latency_ms": figures.total_ms(output),
        "flops": figures.flops(output),
        "kept_share": figures.kept_share(output),
        "sceneeval_pass": None if passed is None else passed[0],
    }


def _fidelity(before: Any, after: Any) -> dict[str, float]:
    (psnr_db,), (ssim,) = figures.fidelity(before[None], after[None])
    return {"psnr_db": psnr_db, "ssim": ssim}


def _words(row: dict[str, Any], batch: int) -> sheet.Words:
    together = f" for {batch} images" if batch > 1 else ""
    before, after = row["dense"], row["pruned"]
    shares = [f"{speed_in_words(row['speedup'])}{together}"]
    bars = [sheet.Bar(f"time{together}", before["latency_ms"], after["latency_ms"], "ms")]
    if before["flops"] is not None and after["flops"] is not None:
        shares.append(f"{after['flops'] / before['flops']:.0%} of the transformer's FLOPs")
        bars.append(
            sheet.Bar("transformer, per image", before["flops"] / 1e9, after["flops"] / 1e9, "GFLOPs")
        )
    same = row["psnr_db"] == float("inf")
    columns = (
        [f"dense ({row['against']})", *_verdict(before)],
        [f"pruned ({row['preset']})", *_verdict(after), *shares],
        [
            f"difference, {sheet.GAIN} times amplified",
            "identical" if same else f"PSNR {row['psnr_db']:.1f} dB, SSIM {row['ssim']:.3f}",
        ],
    )
    return sheet.Words(f"{row['prompt']}  (seed {row['seed']})", columns, bars)


def speed_in_words(speedup: float) -> str:
    """Say how much faster, or slower, one is."""
    return f"{speedup:.2f} times faster" if speedup >= 1 else f"{1 / speedup:.2f} times slower"


def _verdict(side: dict[str, Any]) -> list[str]:
    passed = side["sceneeval_pass"]
    return [] if passed is None else [f"SceneEval: {'pass' if passed else 'fail'}"]
