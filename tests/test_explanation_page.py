"""The HTML page of `explain`: self-contained, complete, and working in a real browser where there is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import toprovar_fx
from toprovar_fx.errors import OutputError
from toprovar_fx.explanation import Explanation
from toprovar_fx.explanation.diff import compare, diff
from toprovar_fx.explanation.markup import because
from toprovar_fx.passes.pipeline import BUILT_IN

from .browser import browse, check_page
from .html_pages import Cells, Checker
from .models import odd
from .models.subjects import MANY_GRAPHS, OPEN, TinyPreNorm, generate
from .test_explanation import PRUNING


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.compiler.reset()
    subject = TinyPreNorm(True, True, depth=3)
    with MANY_GRAPHS:
        forward = torch.compile(subject.model, backend="toprovar", options=PRUNING)
        with toprovar_fx.explaining("<b>PreNorm</b>") as report:
            generate(subject, forward)
    return report.to_html(tmp_path_factory.mktemp("page") / "deep" / "report.html")


def test_the_page_is_whole_and_loads_nothing(page):
    text = page.read_text()
    checker = Checker()
    checker.feed(text)
    assert (checker.wrong, checker.open) == ([], [])
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_the_page_lists_times_recompiles_and_fallbacks(page):
    cells = Cells()
    cells.feed(page.read_text())
    passes = {row[0]: row for row in cells.rows if row and row[0] in {done.name for done in BUILT_IN}}
    assert passes.keys() == {done.name for done in BUILT_IN}
    assert all(float(row[2]) >= 0 for row in passes.values()), "milliseconds of every pass"
    assert float(passes["outline_blocks"][2]) > 0
    text = page.read_text()
    assert "end == 1" in text, "why the second graph was needed"
    assert "graphs, 1 of them recompilations" in text
    assert "ONE_TOKEN" in text and "a scale of one token has nothing to prune" in text


def test_the_reason_of_a_recompilation_names_its_file():
    told = because("0/0: end == 1 # start = a < b  # mp/some/models/infinity.py:176 in forward")
    assert told == "<code>0/0: end == 1</code> for <code>start = a &lt; b</code>, infinity.py:176 in forward"
    assert because("0/0: a < 1") == "0/0: a &lt; 1"


def test_a_page_of_branches(tmp_path, fresh_dynamo):
    """Graphs that hold a `torch.cond` are shown like all others."""
    subject = TinyPreNorm(True, True, depth=2)
    options = {**OPEN, "gate": "graph", "buckets": (0.5,), "min_scale": 2, "lowering": "eager"}
    options |= {"entropy_source": "dense_layer"}
    with MANY_GRAPHS, toprovar_fx.explaining("branches") as report:
        generate(subject, torch.compile(subject.model, backend="toprovar", options=options))
    text = report.to_html(tmp_path / "page.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert (checker.wrong, checker.open) == ([], [])
    assert "torch.ops.higher_order.cond(" in text
    assert "shapes unknown" not in text
    assert "GraphGate" in str(report)


def test_names_are_escaped(page):
    assert "<b>PreNorm</b>" not in page.read_text()
    assert "&lt;b&gt;PreNorm" in page.read_text()


def test_every_pass_has_its_code_before_and_after(page):
    text = page.read_text()
    for name in ("outline_blocks", "cache_offset", "attention_entropy", "token_gather", "layer_skip"):
        assert f"<summary><b>{name}</b>" in text
    gather = text[text.index("<summary><b>token_gather") :]
    assert "torch.gather(hidden, 1, expand)" in gather
    # A new graph is shown against the one it was made from, and a row count that became K is marked.
    assert "compared with: Graph #3, block: all tokens" in gather
    assert "<mark>K</mark>" in gather


def test_the_heat_table_has_a_cell_per_layer_and_scale(page):
    heat = re.search(r'<table class="heat">.*?</table>', page.read_text(), re.DOTALL)[0]
    assert heat.count("<td") == 3 * 6
    assert 'title="layer 1, scale 4: 0 of 36 tokens, skipped">skip' in heat
    assert "--p:25%" in heat


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Explanation("x").to_html(tmp_path / "file" / "page.html")


def test_a_report_without_graphs_makes_a_page(tmp_path):
    assert "Nothing was compiled" in Explanation("x").to_html(tmp_path / "x.html").read_text()


def test_lines_that_differ_in_a_shape_stay_side_by_side():
    made = diff("    a: f32[2, L] = f(x)\n    b = g(a)\n", "    a: f32[2, K] = f(x)\n    b = g(a)\n")
    assert (made.added, made.removed) == (1, 1)
    assert made.html.index("<mark>L</mark>") < made.html.index("<mark>K</mark>") < made.html.index("b = g(a)")


def test_long_equal_runs_fold():
    same = "\n".join(f"line {number}" for number in range(50))
    made = diff(f"{same}\nold", f"{same}\nnew")
    assert "<summary>47 unchanged lines</summary>" in made.html
    assert made.html.count('class="l"') == 50


def test_texts_are_compared_by_title_and_new_ones_with_the_nearest():
    lines = "\n".join(f"v{number} = f(v)" for number in range(9))
    found = compare({"A": lines, "gone": "x = 1"}, {"A": lines, "B": lines + "\nlast", "C": "other"})
    assert [title for title, _ in found] == ["B; compared with: A", "C", "gone"]
    assert [(made.added, made.removed) for _, made in found] == [(1, 0), (1, 0), (0, 1)]


@pytest.mark.browser
def test_search_opens_what_it_finds_in_a_browser(page):
    document, log = browse(page, "#q=torch.gather", "--dump-dom")
    assert "CONSOLE" not in log, log
    hits = int(re.search(r'data-hits="(\d+)"', document)[1])
    assert hits == document.count('class="l a hit') + document.count('class="l hit')
    assert hits >= 5
    assert document.count(" here") == 1
    opened = re.findall(r'<details open="?"?><summary><b>(\w+)', document)
    assert opened == ["token_gather"]


@pytest.mark.browser
def test_the_page_is_drawn_light_and_dark(page, tmp_path):
    from PIL import Image

    shades = []
    for scheme in (0, 1):  # dark, light
        picture = tmp_path / f"{scheme}.png"
        flags = ("--window-size=1000,700", f"--blink-settings=preferredColorScheme={scheme}")
        browse(page, "", f"--screenshot={picture}", *flags)
        pixels = Image.open(picture).convert("L")
        assert pixels.size == (1000, 700)
        assert len(pixels.getcolors()) > 50, "an empty page has a colour or two"
        shades.append(pixels.getpixel((2, 2)))
    assert shades[0] < 60 < 200 < shades[1]


@pytest.mark.browser
@pytest.mark.parametrize("width", [500, 1400])
def test_the_page_fits_the_window_and_logs_nothing(page, width):
    check_page(page, width)


@pytest.mark.browser
def test_other_views_show_the_code_of_one_side(page, tmp_path):
    """The script switches the view and opens what was folded."""
    choice = "<script>document.querySelectorAll('.view input')[2].click()</script></body>"
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</body>", choice))
    document = check_page(clicked, 1000)
    assert document.count('class="code show-after"') >= 1
    assert 'class="code show-before"' not in document


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a model that nothing can be pruned of."""
    torch.compiler.reset()
    subject = odd.OddSubject(odd.Convolution)
    with (
        MANY_GRAPHS,
        toprovar_fx.explaining("a convolution") as report,
        pytest.warns(RuntimeWarning, match="without a prunable graph"),
    ):
        generate(subject, torch.compile(subject.model, backend="toprovar", options=PRUNING))
    return report.to_html(tmp_path_factory.mktemp("refused") / "report.html")


def test_a_page_of_fallbacks_claims_no_gain(refused):
    text = refused.read_text()
    assert '<div class="card "><b>100%</b>' in text and "UNKNOWN_OPERATOR" in text
    assert "No layer was run by a gate." in text and 'class="heat"' not in text
    assert '<div class="card warn"><b>1</b>' in text
    assert all(int(width) <= 100 for width in re.findall(r"width:(\d+)%", text))


@pytest.mark.browser
@pytest.mark.parametrize("width", [500, 1400])
def test_a_page_of_fallbacks_in_a_browser(refused, width):
    assert "UNKNOWN_OPERATOR" in check_page(refused, width)


def test_an_interrupted_page_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with toprovar_fx.explaining() as report:
        pass
    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.to_html(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
