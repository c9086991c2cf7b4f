"""The typer application: arguments in, results out; the work is in the other modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..errors import OptionError
from . import arguments as take
from .output import print_json
from .values import check_choice, parse_budgets

app = typer.Typer(
    name="toprovar",
    help="Draw images with a visual autoregressive model, dense or pruned, and measure what pruning gives.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def application(arguments: list[str]) -> int:
    """Run the command that ``arguments`` name; typer's own exceptions are left to the caller."""
    if arguments and not arguments[0].startswith("-"):
        check_choice("command", arguments[0], [command.name or "" for command in app.registered_commands])
    result = app(arguments or ["--help"], standalone_mode=False, prog_name="toprovar")
    return result if isinstance(result, int) else 0


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _refuse(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that the user gave and that would have no effect."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise OptionError(f"--{name.replace('_', '-')} {why}")


@app.command("generate")
def _generate(
    prompts: take.Prompts = None,
    seed: take.Seed = 0,
    preset: take.Preset = None,
    option: take.Settings = None,
    cfg: take.Cfg = None,
    tau: take.Tau = None,
    compare: take.Compare = False,
    against: take.Against = "inductor",
    out: take.Out = None,
    model: take.Model = "scenes",
    device: take.Device = None,
    dtype: take.Dtype = None,
    json: take.Json = False,
) -> None:
    """Draw prompts into PNG files.

    Nothing is compiled unless a preset, an option or a comparison is asked for.
    """
    from .generate import Request, generate
    from .tables import show_generated

    request = Request(
        prompts=prompts or (),
        seed=seed,
        preset=preset,
        options=option or (),
        cfg=cfg,
        tau=tau,
        compare=compare,
        against=against,
        out=out,
        model=model,
        device=device,
        dtype=dtype,
    )
    result = generate(request)
    show_generated(result)
    if json:
        print_json(result)


@app.command("eval")
def _eval(
    context: typer.Context,
    preset: take.Presets = None,
    n: take.Number = 120,
    seed: take.Seed = 0,
    batch: take.Batch = 4,
    held_out: take.HeldOut = False,
    table: take.Table = None,
    budgets: take.Budgets = "1.5x,2x,3x,4x",
    runs: take.Runs = 3,
    seconds: take.Seconds = None,
    workers: take.Workers = 2,
    model: take.Model = "scenes",
    device: take.Device = None,
    dtype: take.Dtype = None,
    json: take.Json = False,
) -> None:
    """Score presets with SceneEval, and compare their images with the dense ones."""
    from .evaluate import evaluate
    from .tables import show_evaluation

    if table is None:
        _refuse(context, ("budgets", "runs", "seconds", "workers"), "needs --table")
    else:
        from .frontier import write_table

        _refuse(context, ("seed", "held_out"), "does not go with --table, whose seeds follow from --runs")
        written = write_table(
            preset or (),
            out=table,
            budgets=parse_budgets(budgets),
            n=n,
            runs=runs,
            batch=batch,
            seconds=seconds,
            workers=workers,
            model=model,
            device=device,
            dtype=dtype,
        )
        print(f"{written['out']}: table.html, table.md, table.png, table.json")
        if json:
            print_json(written)
        return

    result = evaluate(
        preset or (),
        n=n,
        seed=seed,
        batch=batch,
        held_out=held_out,
        model=model,
        device=device,
        dtype=dtype,
    )
    show_evaluation(result)
    if json:
        print_json(result)


@app.command("gallery")
def _gallery(
    prompts: take.Prompts = None,
    preset: take.Presets = None,
    out: take.GalleryOut = "gallery",
    seed: take.Seed = 0,
    model: take.Model = "scenes",
    device: take.Device = None,
    dtype: take.Dtype = None,
    json: take.Json = False,
) -> None:
    """Draw prompts dense and by every preset, and which tokens were computed, for a report."""
    from .gallery import gallery

    drawn = gallery(prompts or (), preset or (), out=out, seed=seed, model=model, device=device, dtype=dtype)
    print(f"{drawn['out']}: gallery.json, {sum(len(row['images']) for row in drawn['rows'])} images")
    if json:
        print_json(drawn)


@app.command("report")
def _report(out: take.ReportOut, parts: take.ReportParts = None, json: take.Json = False) -> None:
    """Join what measurements wrote into one page; tables of several runs become one table."""
    from .report import report

    written = report(out, parts or ())
    print(f"{written['out']}: {', '.join(written['files'])}")
    if json:
        print_json(written)


@app.command("tune")
def _tune(
    target: take.Speedup,
    out: take.PresetOut = "tuned.json",
    trials: take.Trials = 30,
    n: take.Number = 300,
    test_n: take.TestNumber = 1200,
    batch: take.Batch = 50,
    seconds: take.Seconds = None,
    workers: take.Workers = 2,
    processes: take.Processes = 1,
    seed: take.Seed = 0,
    model: take.Model = "scenes",
    device: take.Device = None,
    json: take.Json = False,
) -> None:
    """Search the options with the best quality at a budget, and write them as a preset file."""
    from .tables import show_tuned
    from .tune import tune_preset

    result = tune_preset(
        target,
        out=out,
        trials=trials,
        n=n,
        test_n=test_n,
        batch=batch,
        seconds=seconds,
        workers=workers,
        processes=processes,
        seed=seed,
        model=model,
        device=device,
    )
    show_tuned(result)
    if json:
        print_json(result)


@app.command("bench")
def _bench(
    variants: take.Variants = "eager,inductor,lossless,balanced,fast",
    budgets: take.Budgets = "1.5x,2x,3x,4x",
    repeats: take.Repeats = 5,
    batch: take.Batch = 1,
    seed: take.Seed = 0,
    model: take.Model = "scenes",
    device: take.Device = None,
    dtype: take.Dtype = None,
    json: take.Json = False,
) -> None:
    """Time eager, Inductor and presets in one interleaved run."""
    from .bench import bench
    from .tables import show_benchmark

    result = bench(
        variants,
        budgets=parse_budgets(budgets),
        model=model,
        seed=seed,
        batch=batch,
        rounds=repeats,
        device=device,
        dtype=dtype,
    )
    show_benchmark(result)
    if json:
        print_json(result)


@app.command("policies")
def _policies(json: take.Json = False) -> None:
    """List the pruning methods, their constants, and where each differs from what was published."""
    from .policies import list_policies, show_policies

    result = list_policies()
    show_policies(result)
    if json:
        print_json(result)


@app.command("explain")
def _explain(
    prompt: take.Prompt = "a red circle left of a blue square",
    preset: take.Preset = None,
    option: take.Settings = None,
    seed: take.Seed = 0,
    model: take.Model = "scenes",
    device: take.Device = None,
    dtype: take.Dtype = None,
    html: take.Html = None,
    json: take.Json = False,
) -> None:
    """Say what each pass did where, what ran dense and why, and what each layer kept at each scale."""
    from .explain import explain
    from .tables import show_explanation

    found, result = explain(
        prompt,
        preset=preset,
        options=option or (),
        seed=seed,
        model=model,
        device=device,
        dtype=dtype,
        html=html,
    )
    show_explanation(found, result)
    if json:
        print_json(result)


@app.command("convert")
def _convert(
    source: take.Source,
    target: take.Target,
    dtype: take.Converted = None,
    max_shard_bytes: take.ShardBytes = "5GB",
    json: take.Json = False,
) -> None:
    """Convert official checkpoints to safetensors; run it again to continue after an interruption."""
    from .convert import convert
    from .tables import show_conversion

    result = convert(source, target, dtype=dtype, max_shard_bytes=max_shard_bytes)
    show_conversion(result)
    if json:
        print_json(result)


@app.command("calibrate")
def _calibrate(
    prompts: take.PromptFile,
    model: take.CalibratedModel = "scenes",
    n: take.FirstPrompts = None,
    out: take.ProfileOut = "profile.json",
    preset: take.Criterion = None,
    option: take.Settings = None,
    seed: take.Seed = 0,
    batch: take.Batch = 1,
    device: take.Device = None,
    plots: take.Plots = None,
    json: take.Json = False,
) -> None:
    """Measure a model on prompts and write its depth, roles and kept tokens for `--option profile=FILE`."""
    from .calibrate import calibrate
    from .tables import show_calibration

    profile, result = calibrate(
        model,
        prompts=prompts,
        n=n,
        out=out,
        preset=preset,
        options=option or (),
        seed=seed,
        batch=batch,
        device=device,
        plots=plots,
    )
    show_calibration(profile, result)
    if json:
        print_json(result)
