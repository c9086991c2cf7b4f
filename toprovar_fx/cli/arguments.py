"""The command line's arguments, as typer annotations."""

from __future__ import annotations

from typing import Annotated

import typer

Prompts = Annotated[
    list[str] | None, typer.Argument(metavar="PROMPT...", help="One image is drawn for each.")
]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the first image; image i uses seed + i.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        help="scenes, the path of a pipeline file, or untrained:NAME for random weights.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:N; by default CUDA where there is one.")
]
Json = Annotated[bool, typer.Option("--json", help="End standard output with one line of JSON.")]

Html = Annotated[
    str | None,
    typer.Option("--html", metavar="PATH", help="Also write one page with the code around every pass."),
]

Preset = Annotated[str | None, typer.Option("--preset", help="A preset (lossless, balanced, ...) or policy.")]
Presets = Annotated[
    list[str] | None,
    typer.Option("--preset", help="PRESET or POLICY, also with :key=value; repeatable."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="A setting on top of the preset; repeatable."),
]
Variants = Annotated[
    str,
    typer.Option(
        "--variants",
        help="Of eager, inductor, inductor:MODE, PRESET, POLICY, also with :key=value; commas between.",
    ),
]

Cfg = Annotated[float | None, typer.Option("--cfg", help="Guidance strength.")]
Tau = Annotated[
    float | None, typer.Option("--tau", help="Sampling temperature (the depth threshold is an --option).")
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Write sheets: dense, pruned, difference, kept tokens, figures.")
]
Against = Annotated[
    str, typer.Option("--against", help="What --compare times dense with: inductor or eager.")
]
Out = Annotated[str | None, typer.Option("--out", metavar="PATH|DIR", help="A .png file, or a folder.")]

Number = Annotated[int, typer.Option("--n", help="Number of prompts; the six categories take turns.")]
Batch = Annotated[int, typer.Option("--batch", help="Images that are drawn together.")]
HeldOut = Annotated[bool, typer.Option("--held-out", help="Only combinations that training never showed.")]
Repeats = Annotated[int, typer.Option("--repeats", help="Timed rounds; each runs every variant once.")]
