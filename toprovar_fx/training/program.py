"""The command line of training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import OptionError, ToProVARError
from .settings import (
    RunSettings,
    StepKind,
    TokenizerSettings,
    TransformerSettings,
    tiny_tokenizer,
    tiny_transformer,
)


def parser() -> argparse.ArgumentParser:
    """Build the argument parser of both phases."""
    top = argparse.ArgumentParser(prog="python -m toprovar_fx.training", description=__doc__)
    top.add_argument("phase", choices=("tokenizer", "transformer", "evaluate", "package"))
    top.add_argument("--workdir", type=Path, required=True, help="folder of the resumable state")
    top.add_argument("--export", type=Path, help="folder for the averaged weights")
    top.add_argument(
        "--vae", type=Path, help="folder of an exported tokenizer (default: --export or --init-from)"
    )
    top.add_argument("--init-from", type=Path, help="folder of exported weights to start from")
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    top.add_argument("--seconds", type=float, help="training budget; schedules follow it")
    top.add_argument("--session-seconds", type=float, help="stop this process after so many seconds")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--lr", type=float, help="highest learning rate")
    top.add_argument("--batch", type=int, help="tokenizer: images a step")
    top.add_argument("--cache-images", type=int, help="transformer: latents to cache at most")
    top.add_argument("--cache-seconds", type=float, help="transformer: time to fill the cache at most")
    top.add_argument("--mix", help="transformer: time shares of layout,middle,full steps")
    top.add_argument("--batches", help="transformer: images of layout,middle,full steps")
    top.add_argument("--flips", type=float, help="transformer: highest flip probability")
    top.add_argument("--scale-power", type=float, help="transformer: exponent of the loss weight per scale")
    top.add_argument("--no-compile", action="store_true")
    top.add_argument("--tiny", action="store_true", help="sizes for a test on a processor")
    top.add_argument("--log-every", type=float, default=5.0, help="seconds between progress lines")
    top.add_argument(
        "--evaluate", type=int, default=0, metavar="N", help="then score N prompts with SceneEval"
    )
    top.add_argument(
        "--sweep", type=int, default=0, metavar="N", help="first choose cfg and tau on N prompts"
    )
    top.add_argument("--out", type=Path, help="package: the .safetensors path to write")
    top.add_argument("--cfg", type=float, default=3.0, help="package: default guidance to store")
    top.add_argument("--tau", type=float, default=1.0, help="package: default temperature to store")
    top.add_argument("--workers", type=int, default=14, help="processes that score images")
    return top


def kinds_of(kinds: tuple[StepKind, ...], mix: str | None, batches: str | None) -> tuple[StepKind, ...]:
    """Step kinds with the shares and batches of the command line.

    Raises:
        OptionError: not one number per kind, or a share below 0, or a batch below 1.
    """
    for name, text, lowest in (("share", mix, 0.0), ("batch", batches, 1.0)):
        if text is None:
            continue
        try:
            numbers = [float(word) for word in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != len(kinds) or min(numbers) < lowest or sum(numbers) <= 0:
            names = ",".join(kind.name for kind in kinds)
            raise OptionError(
                f"{name} {text!r}: expected a number of at least {lowest:g} for each of {names}"
            )
        if name == "share":
            kinds = tuple(replace(kind, share=number) for kind, number in zip(kinds, numbers, strict=True))
        else:
            kinds = tuple(
                replace(kind, batch=int(number)) for kind, number in zip(kinds, numbers, strict=True)
            )
    return kinds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a phase; the last line on stdout is one JSON object."""
    options = parser().parse_args(arguments)
    try:
        for summary in _run(options):
            print(json.dumps(summary), flush=True)
    except ToProVARError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _run(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    device = torch.device(options.device)
    run = RunSettings(
        seconds=options.seconds or (150.0 if options.phase == "tokenizer" else 900.0),
        session_seconds=options.session_seconds,
        seed=options.seed,
        log_every=options.log_every,
        compile=not options.no_compile and not options.tiny,
    )
    if options.phase == "tokenizer":
        from .tokenizer import train_tokenizer

        tokenizer = replace(TokenizerSettings(), **_given(peak=options.lr, batch=options.batch))
        if options.tiny:
            tokenizer = tiny_tokenizer(tokenizer)
        summary, vae = train_tokenizer(run, tokenizer, options.workdir, device, options.export)
        yield summary
        if options.evaluate:
            from .sample_eval import evaluate_tokenizer

            sheet = (options.export or options.workdir) / "reconstructions.png"
            yield evaluate_tokenizer(vae, prompts=options.evaluate, workers=options.workers, samples=sheet)
    else:
        yield from _run_transformer(options, run, device)


def _run_transformer(
    options: argparse.Namespace, run: RunSettings, device: torch.device
) -> Iterator[dict[str, object]]:
    from .storage import write_json
    from .tokenizer import load_tokenizer
    from .transformer import Pair, TransformerTrainer, load_pair, train_transformer

    settings = replace(
        TransformerSettings(),
        **_given(
            peak=options.lr,
            cache_images=options.cache_images,
            cache_seconds=options.cache_seconds,
            flips=options.flips,
            scale_power=options.scale_power,
        ),
    )
    settings = replace(settings, kinds=kinds_of(settings.kinds, options.mix, options.batches))
    if options.tiny:
        settings = tiny_transformer(settings)
    if options.phase == "package":
        from .package import package

        if options.export is None or options.out is None:
            raise OptionError("package: expected --export (folder of a run) and --out (.safetensors path)")
        yield package(options.export, settings, options.out, options.cfg, options.tau)
        return
    folders = (options.vae, options.export, options.init_from, options.workdir)
    holding = [folder for folder in folders if folder is not None and (folder / "vae").is_dir()]
    vae = load_tokenizer(holding[0] if holding else options.workdir, device)
    if options.phase == "transformer":
        trainer = TransformerTrainer(run, settings, vae, options.workdir, device, options.init_from)
        yield train_transformer(trainer, options.export)
        pair = trainer.pair
    else:
        pair = Pair(settings).to(device).eval()
        load_pair(pair, options.export or options.init_from or options.workdir)
    if options.evaluate or options.sweep or options.phase == "evaluate":
        from .sample_eval import evaluate_pair

        report = evaluate_pair(
            pair,
            vae,
            prompts=options.evaluate or 1200,
            sweep=options.sweep,
            workers=options.workers,
            samples=(options.export or options.workdir) / "samples.png",
        )
        write_json((options.export or options.workdir) / "evaluation.json", report)
        yield report
