"""What the passes declare is what they do, and docs/passes.md says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from toprovar_fx.options import Options
from toprovar_fx.passes.context import PassContext
from toprovar_fx.passes.pipeline import BUILT_IN, ORDER, rewrite_step
from toprovar_fx.passes.table import passes_table
from toprovar_fx.presets import PRESETS
from toprovar_fx.runtime.verify import PermutationCheck

from .models.fixtures import traced
from .models.subjects import OPEN

PAGE = Path(__file__).resolve().parent.parent / "docs" / "passes.md"
# Each switches one of the conditions that the declarations name.
SETTINGS = {
    **{name: {"preset": name} for name in PRESETS},
    "keep": {**OPEN, "keep": {-1: 0.5}},
    "keep none": {**OPEN, "keep": {-1: {2: 0.0}}},
    "lossless with keep": {**OPEN, "preset": "lossless", "keep": {-1: 0.5}},
    "keep in the graph": {**OPEN, "keep": {-1: 0.5}, "gate": "graph"},
    "branches in the graph": {**OPEN, "buckets": (0.5,), "gate": "graph"},
    "many buckets in the graph": {**OPEN, "gate": "graph"},
    "own entropies in the graph": {
        **OPEN,
        "keep": {-1: 0.5},
        "entropy_source": "same_layer",
        "gate": "graph",
    },
    "nothing in the graph": {"preset": "lossless", "gate": "graph"},
    "frequency": {**OPEN, "score": "frequency"},
    "frequency by keep": {**OPEN, "score": "frequency", "keep": {-1: 0.5}},
    "fixed depth": {"score": "random", "depth": "fixed", "depth_scale": 2, "layer_scope": "off"},
    "scope of tokens": {"score": "random", "prune_scales": False, "scope_of": "tokens"},
    "skipping": {**OPEN, "layer_skip_below": 0.3},
    "skipping alone": {**OPEN, "prune_tokens": False, "layer_skip_below": 0.3},
    "scale exit alone": {"preset": "lossless", "scale_exit": -1, "score": "random"},
    "lossless with a skip that cannot be": {"preset": "lossless", "layer_skip_below": 0.3, "score": "random"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_pass_acts_exactly_when_it_says_so(name):
    options = Options(**{"protected_layers_first": 1, "protected_layers_last": 0, **SETTINGS[name]})
    context = PassContext("eager", PermutationCheck("never"))
    _, records = rewrite_step(traced("prenorm-fused-rope").dynamic, options, context)
    acted = {record.name: record.modified for record in records}
    assert acted == {declared.name: declared.active(options) for declared in BUILT_IN}


def test_the_settings_tell_every_pass_from_every_other():
    """A condition that no setting switches would go unseen."""
    patterns = {
        declared.name: tuple(declared.active(Options(**values)) for values in SETTINGS.values())
        for declared in BUILT_IN[2:]
    }
    assert len(set(patterns.values())) == len(patterns)
    assert all(any(pattern) and not all(pattern) for pattern in patterns.values())


def test_every_pass_runs_after_what_it_requires():
    done: set[str] = set()
    for declared in BUILT_IN:
        assert set(declared.requires) <= done, declared.name
        done.add(declared.name)
    assert BUILT_IN[1:] == ORDER


@pytest.mark.parametrize("declared", BUILT_IN, ids=lambda declared: declared.name)
def test_a_declaration_is_complete(declared):
    assert declared.run.__name__ == declared.name
    assert declared.run.__module__.endswith(f".{declared.name}"), "one pass a file, named after it"
    for words in (declared.rewrites, declared.ensures, declared.price, declared.when):
        assert words and "|" not in words and "\n" not in words


def test_the_page_shows_the_declarations():
    text = PAGE.read_text()
    shown = text[text.index("<!-- passes -->\n") : text.index("<!-- end of passes -->")]
    assert shown.partition("\n")[2] == passes_table(), "write passes_table() into docs/passes.md"
