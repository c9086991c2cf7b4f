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
        help="scenes, a pipeline file, a folder of official weights, or untrained:NAME for random ones.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:N; by default CUDA where there is one.")
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16; by default bfloat16 on CUDA, else float32."),
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
        help="Of eager, inductor, inductor:MODE, PRESET, POLICY, also with :key=value; commas between; "
        "@PRESET is also timed at every budget.",
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

Speedup = Annotated[
    str, typer.Option("--target", help="Dense FLOPs over pruned FLOPs of the transformer, such as 3x.")
]
PresetOut = Annotated[str, typer.Option("--out", metavar="FILE.json", help="The preset file to write.")]
Trials = Annotated[int, typer.Option("--trials", help="Settings to try.")]
TestNumber = Annotated[int, typer.Option("--test-n", help="Prompts of the final report.")]
Seconds = Annotated[float | None, typer.Option("--seconds", help="Begin no further setting after this time.")]
BenchSeconds = Annotated[
    float | None,
    typer.Option("--seconds", help="Compile no further variant and begin no further round after this time."),
]
BenchProcesses = Annotated[
    int, typer.Option("--processes", help="Processes that compile side by side and are timed one by one.")
]
Processes = Annotated[int, typer.Option("--processes", help="Processes that draw, on one device.")]
Workers = Annotated[int, typer.Option("--workers", help="Processes that judge images.")]

Table = Annotated[
    str | None,
    typer.Option(
        "--table",
        metavar="FOLDER",
        help="Write the quality-cost table of the presets here; @PRESET is also drawn at every budget.",
    ),
]
Budgets = Annotated[
    str, typer.Option("--budgets", help="For @NAME: dense over pruned FLOPs, with commas between.")
]
Runs = Annotated[int, typer.Option("--runs", help="For --table: image seeds per prompt, up to 9.")]

ReportOut = Annotated[str, typer.Argument(metavar="OUT", help="A folder for the report.")]
ReportParts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PART...",
        help="Folders of `eval --table` and `gallery`; JSON of `bench`, `calibrate` and the benchmarks.",
    ),
]
GalleryOut = Annotated[str, typer.Option("--out", metavar="FOLDER", help="A folder for the pictures.")]

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A checkpoint (file, folder of shards), or a folder of parts.")
]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="A new folder, or one with this conversion interrupted.")
]
Converted = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; by default as in the source.")
]
ShardBytes = Annotated[
    str, typer.Option("--max-shard-bytes", help="Largest file: bytes, or with a unit as in 500MB or 2GiB.")
]
CalibratedModel = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="scenes, the path of a pipeline file, or untrained:NAME."),
]
PromptFile = Annotated[
    str, typer.Option("--prompts", metavar="FILE", help="A text file with one prompt a line.")
]
FirstPrompts = Annotated[int | None, typer.Option("--n", help="Use the first N prompts; all by default.")]
ProfileOut = Annotated[str, typer.Option("--out", metavar="FILE", help="Where the profile is written.")]
Criterion = Annotated[
    str | None, typer.Option("--preset", help="What is calibrated: criterion (the default) or literal.")
]
Plots = Annotated[
    str | None,
    typer.Option("--plots", metavar="FOLDER", help="Also draw entropy and rho per scale, roles and maps."),
]
