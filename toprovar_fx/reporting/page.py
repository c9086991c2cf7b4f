"""The report as one HTML page that needs nothing else: pictures are in it, nothing is loaded."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.plots import entropy_and_rho, layer_roles
from ..calibration.profile import Profile
from ..evaluation.frontier_join import short_rows
from ..evaluation.frontier_latency import devices
from ..explanation.markup import table
from . import tables
from .frontier_page import latency_plot, plot
from .frontier_page import table as frontier_table
from .gallery import gallery
from .parts import KINDS, MISFITS, Parts, misfit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Quality and cost of pruning"
# What a measurement says about how it was made; a card's name stands for its device.
SETTINGS = (
    "model",
    "device",
    "device_name",
    "dtype",
    "torch",
    "toprovar_fx",
    "threads",
    "n",
    "split",
    "runs",
    "batch",
    "rounds",
    "trials",
    "image_seeds",
    "seed",
    "presets",
    "budgets",
)


def as_page(parts: Parts) -> str:
    """The whole page; it holds a section for every part that is given, and none for others.

    Raises:
        ToProVARError: a picture of a gallery cannot be read, or a part lacks an entry or has a
            wrong one.
    """
    style = files("toprovar_fx.explanation").joinpath("page.css").read_text(encoding="utf-8")
    style += files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    try:
        sections = list(_sections(parts))
    except MISFITS as error:
        raise misfit(error) from error
    links = [f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections]
    # A page of one section needs no list of them.
    nav = f"<nav>{' '.join(links)}</nav>" if links[1:] else ""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{TITLE}</title>\n<style>\n{style}</style>\n</head>\n<body>",
            f"<header><h1>{TITLE}</h1>{nav}</header>\n<main>",
            *(
                "\n".join([f'<section id="{name}"><h2>{escape(title)}</h2>', *body, "</section>"])
                for name, title, body in sections
            ),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _sections(parts: Parts) -> Iterator[tuple[str, str, list[str]]]:
    if parts.table is not None:
        yield "frontier", "Quality and cost", list(_frontier(parts.table))
    if parts.benches:
        yield "times", "Latency and memory", list(_benches(parts.benches))
    if parts.ablations:
        yield "ablations", "Ablations", list(_ablations(parts))
    if parts.presets:
        yield "presets", "Tuned presets", list(_presets(parts.presets))
    if parts.classifiers:
        yield "classifiers", "Classifiers of skipvar", list(_classifiers(parts.classifiers))
    if parts.kernels or parts.taps:
        yield "entropy-cost", "What entropy costs", list(_entropy_costs(parts))
    if parts.profiles:
        yield "scales", "Entropy, rho and roles", list(_profiles(parts.profiles))
    for at, (file, found) in enumerate(parts.galleries.items()):
        yield f"gallery{at}", "Images and pruned tokens", [_made(found), *gallery(found, Path(file).parent)]
    listed = list(_sources(parts))
    if listed:
        yield "sources", "Where the numbers come from", ["<ul>", *listed, "</ul>"]


def _frontier(found: Mapping[str, Any]) -> Iterator[str]:
    yield _made(found)
    yield _picture(plot(found), "Change of the score against FLOPs, a line for each method")
    for device in devices(found):
        yield _picture(
            latency_plot(found, device), "Change of the score against time, a line for each method"
        )
    head, *rows = frontier_table(found)
    yield from _text_table(head, rows)
    yield (
        '<p class="soft">Score: share of the prompts that the image fulfils (SceneEval), also by category. '
        "Change: paired to dense by prompt and image seed, with its 95% interval. Match: share of the facts "
        "of the prompts that hold (objects, colours, numbers, relations). PSNR and SSIM: to the "
        "dense image of the same seed. FID: Frechet distance to true scenes in tokenizer features.</p>"
    )
    if devices(found):
        yield (
            '<p class="soft">ms: median of a whole generation of one image, text encoder and image decoder '
            "included, from `toprovar bench`; dense there is the model compiled by Inductor.</p>"
        )
    head, rows = tables.peers(found)
    if rows:
        yield "<h3>At equal budgets: distance to the best, paired by prompt and image seed</h3>"
        yield from _text_table(head, rows)
    if found.get("dense_apart"):
        yield f'<p class="soft">Joined: dense scores are up to {found["dense_apart"]:.4f} apart.</p>'
    missing = found["left_out"] | short_rows(found)
    if missing:
        yield "<h3>Left out or cut short</h3><ul>"
        yield from (f"<li>{escape(name)}: {escape(why)}</li>" for name, why in missing.items())
        yield "</ul>"


def _benches(found: Mapping[str, Any]) -> Iterator[str]:
    for one in found.values():
        yield _made(one)
        yield from _text_table(*tables.bench(one))
        for name, why in one.get("left_out", {}).items():
            yield f"<p>{escape(name)} was left out: {escape(why)}</p>"
        if one["graphs_compiled_while_timing"]:
            yield "<p>Graphs were compiled while timing: the times are too long.</p>"
    yield (
        '<p class="soft">Medians of interleaved rounds. Spread: half the distance between the quartiles. '
        "Over Inductor: median over the rounds of Inductor's time over this one's. Scales: without text "
        "encoder and image decoder.</p>"
    )


def _ablations(parts: Parts) -> Iterator[str]:
    for one in parts.ablations.values():
        yield _made(one)
        yield f"<p>Dense: {one['dense']['overall']:.3f}. Changes are paired to it, with 95% intervals.</p>"
        for group, head, rows in tables.ablations(one, list(parts.benches.values())):
            yield f"<h3>{escape(group)}</h3>"
            yield from _text_table(head, rows)


def _presets(found: Mapping[str, Any]) -> Iterator[str]:
    for file, one in found.items():
        yield f"<h3>{escape(Path(file).name)}: {one['target']:g} times fewer FLOPs</h3>"
        yield _made(one)
        yield from _text_table(*tables.tuned(one))
        yield f'<p class="soft">Options: <code>{escape(json.dumps(one["options"]))}</code></p>'
    yield (
        '<p class="soft">The best of all settings that were tried on the split "tune", which flatters it, '
        'and the same on "test": other prompts and other image seeds. Changes are paired to dense.</p>'
    )


def _classifiers(found: Mapping[str, Any]) -> Iterator[str]:
    for one in found.values():
        yield _made(one["settings"])
        yield from _text_table(*tables.classifiers(one))
    yield (
        '<p class="soft">Too much: share of the prompts of which more is left out than passes. Most common: '
        "what the most common label alone would get right.</p>"
    )


def _entropy_costs(parts: Parts) -> Iterator[str]:
    for one in parts.kernels.values():
        yield "<h3>One attention: time over that of the fastest attention without entropy</h3>"
        yield _made(one)
        yield from _text_table(*tables.kernels(one))
    for one in parts.taps.values():
        yield "<h3>A whole generation: time beyond one with the same tokens and no entropy</h3>"
        yield _made(one)
        yield from _text_table(*tables.taps(one))


def _profiles(found: Mapping[str, Profile]) -> Iterator[str]:
    for profile in found.values():
        depth = "was not reached" if profile.depth is None else f"is scale {profile.depth}"
        said = f"{profile.observed.images} images, torch {profile.torch}; D {depth}."
        yield f'<p class="soft">{escape(said)}</p>'
        yield "<h3>Attention entropy and the share of low entropies, by scale</h3>"
        yield _picture(_png(entropy_and_rho(profile)), "Mean attention entropy and rho by scale")
        yield "<h3>Roles of the layers, and the tokens that they keep</h3>"
        yield _picture(_png(layer_roles(profile)), "R and share of tokens kept, by layer and scale")


def _sources(parts: Parts) -> Iterator[str]:
    for kind, (command, _) in KINDS.items():
        for file in getattr(parts, kind):
            yield f"<li>{command}: <code>{escape('/'.join(Path(file).parts[-2:]))}</code></li>"


def _made(found: Mapping[str, Any]) -> str:
    # In other documents these names may stand for results, which are no settings.
    told = {name: found[name] for name in SETTINGS if isinstance(found.get(name), (str, int)) and found[name]}
    said = {name.removesuffix("_name"): value for name, value in told.items()}
    return f'<p class="soft">{escape(", ".join(f"{name} {value}" for name, value in said.items()))}</p>'


def _text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from table([escape(name) for name in head], [[escape(cell) for cell in row] for row in rows])


def _picture(png: bytes, alt: str) -> str:
    return f'<img class="plot" alt="{alt}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()
