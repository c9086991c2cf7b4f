"""The typer application: which commands there are; what each takes and does is in its own module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import OptionError
from . import arguments as take
from . import tables
from .bench import bench
from .calibrate import calibrate
from .convert import convert
from .evaluate import evaluate
from .explain import explain
from .frontier import write_table
from .gallery import gallery
from .generate import Request, generate
from .output import print_json
from .policies import list_policies, show_policies
from .report import report
from .tune import tune_preset
from .values import check_command, parse_budgets

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
        check_command(arguments[0], [command.name or "" for command in app.registered_commands])
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


def _command(
    name: str,
    work: Callable[..., Any],
    show: Callable[..., None],
    help: str,
    takes: Callable[..., Any] | None = None,
) -> None:
    """Offer ``work`` as a command: its parameters, annotated as in `arguments`, and ``--json``.

    Args:
        name: of the command.
        work: what it does.
        show: prints for people what ``work`` returns, the last of which is what ``--json`` prints.
        help: what ``--help`` says.
        takes: what ``work`` takes as its one argument; its parameters are then the command's.
    """

    def run(json: bool, **given: Any) -> None:
        made = work(**given) if takes is None else work(takes(**given))
        shown = made if isinstance(made, tuple) else (made,)
        show(*shown)
        if json:
            print_json(shown[-1])

    parameters = list(inspect.signature(takes or work, eval_str=True).parameters.values())
    last = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=take.Json)
    run.__signature__ = inspect.Signature([*parameters, last])  # type: ignore[attr-defined]
    app.command(name, help=help)(run)


_command(
    "generate",
    generate,
    tables.show_generated,
    "Draw prompts into PNG files.\n\n"
    "Nothing is compiled unless a preset, an option or a comparison is asked for.",
    takes=Request,
)


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
    if table is None:
        _refuse(context, ("budgets", "runs", "seconds", "workers"), "needs --table")
    else:
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
    tables.show_evaluation(result)
    if json:
        print_json(result)


_command(
    "gallery",
    gallery,
    tables.show_gallery,
    "Draw prompts dense and by every preset, and which tokens were computed, for a report.",
)
_command(
    "report",
    report,
    tables.show_report,
    "Join what measurements wrote into one page; tables of several runs become one table.",
)
_command(
    "tune",
    tune_preset,
    tables.show_tuned,
    "Search the options with the best quality at a budget, and write them as a preset file.",
)
_command("bench", bench, tables.show_benchmark, "Time eager, Inductor and presets in one interleaved run.")
_command(
    "policies",
    list_policies,
    show_policies,
    "List the pruning methods, their constants, and where each differs from what was published.",
)
_command(
    "explain",
    explain,
    tables.show_explanation,
    "Say what each pass did where, what ran dense and why, and what each layer kept at each scale.",
)
_command(
    "convert",
    convert,
    tables.show_conversion,
    "Convert official checkpoints to safetensors; run it again to continue after an interruption.",
)
_command(
    "calibrate",
    calibrate,
    tables.show_calibration,
    "Measure a model on prompts and write its depth, roles and kept tokens for `--option profile=FILE`.",
)
