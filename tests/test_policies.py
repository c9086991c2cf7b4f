"""The seam of the policies: by name, with constants that go over the preset's, listed everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from toprovar_fx.__main__ import main
from toprovar_fx.cache_policies.registry import CACHE_POLICIES, cache_policies_table
from toprovar_fx.cli.variants import parse_variant
from toprovar_fx.errors import OptionError
from toprovar_fx.options import Options
from toprovar_fx.policies.policy import Policy
from toprovar_fx.policies.registry import POLICIES, policies_table
from toprovar_fx.presets import PRESETS
from toprovar_fx.runtime.report import report_of

from .models.fixtures import traced
from .models.subjects import OPEN, identical

PAGE = Path(__file__).resolve().parent.parent / "docs" / "policies.md"
# What a preset and nothing else decides under these policies.
FOLLOWS_THE_PRESET = ("toprovar", "random")


def test_an_unknown_policy_is_refused_with_the_nearest():
    with pytest.raises(OptionError, match=r"policy='toprvar': .*; nearest valid: 'toprovar'"):
        Options(policy="toprvar")
    with pytest.raises(OptionError, match="policy=5: expected one of"):
        Options.parse({"policy": 5})


@pytest.mark.parametrize("name", list(POLICIES))
def test_constants_go_over_the_preset_and_under_the_options(name):
    policy = POLICIES.find("policy", name)
    options = Options(policy=name)
    for option, value in policy.constants.items():
        expected = Options.parse({"policy": "toprovar", "preset": "criterion", option: value})
        assert getattr(options, option) == getattr(expected, option)
    assert Options(policy=name, tau=0.123).tau == 0.123
    assert Options.parse(json.loads(json.dumps(options.as_dict()))) == options


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in FOLLOWS_THE_PRESET])
def test_no_preset_shines_through_the_constants_of_a_peer(name):
    assert len({Options(policy=name, preset=preset) for preset in PRESETS}) == 1


def test_the_default_is_the_criterion():
    assert Options().policy == "toprovar"
    assert parse_variant("fast:policy=toprovar").options == {"preset": "fast", "policy": "toprovar"}


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_says_what_it_is(name):
    policy = POLICIES.find("policy", name)
    assert policy.name == name
    assert policy.summary and policy.source
    assert name == "random" or policy.deviations
    assert parse_variant(name).options == {"policy": name}


def test_the_page_shows_the_policies():
    text = PAGE.read_text()
    shown = text[text.index("<!-- policies -->\n") : text.index("<!-- end of policies -->")]
    assert shown.partition("\n")[2] == policies_table(), "write policies_table() into docs/policies.md"
    for name in POLICIES:
        assert f"\n## `{name}`" in text


def test_the_page_shows_the_cache_policies():
    text = PAGE.read_text()
    shown = text[text.index("<!-- cache policies -->\n") : text.index("<!-- end of cache policies -->")]
    assert shown.partition("\n")[2] == cache_policies_table(), "write cache_policies_table() into the page"
    for name in list(CACHE_POLICIES)[1:]:
        assert f'\n### `cache_policy="{name}"`' in text
        assert CACHE_POLICIES.find("cache_policy", name).deviations


def test_the_command_lists_them(capsys):
    assert main(["policies", "--json"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{shown}" for name in POLICIES)
    values = json.loads(shown.splitlines()[-1])
    assert set(values["policies"]) == set(POLICIES)
    assert set(values["cache_policies"]) == set(CACHE_POLICIES)
    assert all(f"\ncache_policy={name}: " in shown for name in CACHE_POLICIES)


class Evens(Policy):
    """Keeps every other token of the last scale, in every layer but the first and the last."""

    name = "evens"
    summary, source = "every other token", "these tests"
    constants: ClassVar = {"score": "random", "depth": "off", "layer_scope": "off"}

    def is_open(self, unit):
        return 0 < unit < self.layers - 1

    def keep_ratio(self, scale, unit):
        return 0.5 if scale == len(self.schedule) - 1 else 1.0


@pytest.fixture
def evens() -> Iterator[type[Policy]]:
    yield POLICIES.add("evens", Evens)
    POLICIES.remove("evens")


def test_a_policy_of_ones_own_is_asked(evens):
    # `keep` makes the passes put the gates in; the policy answers instead of it.
    outcome = traced("infinity")({**OPEN, "policy": "evens", "keep": {-1: 0.9}})
    assert outcome.counts(5) == [64, 32, 32, 64]
    assert outcome.counts(4) == [36] * 4
    assert isinstance(outcome.controller.policy, Evens)
    named = traced("infinity")({**OPEN, "keep": {-1: {1: 0.5, 2: 0.5}}, "score": "random"})
    assert identical(outcome.logits, named.logits)


def test_a_policy_that_was_replaced_is_not_the_same_options(evens):
    first = Options(policy="evens")
    POLICIES.remove("evens")
    POLICIES.add("evens", type("Other", (Evens,), {}))
    assert first != Options(policy="evens")


def test_random_keeps_the_counts_of_the_preset_and_not_its_tokens():
    named = {"preset": "balanced", "protected_layers_first": 1}
    own, drawn = (traced("infinity")({**named, "policy": policy}) for policy in ("toprovar", "random"))
    assert own.counts(5) == drawn.counts(5)
    sets = drawn.controller.ledger.keep_sets
    assert sets.keys() == own.controller.ledger.keep_sets.keys()
    assert any(not torch.equal(keep, own.keeps[place]) for place, keep in sets.items())
    assert not torch.equal(sets[5, 1], sets[5, 2])
    assert not drawn.controller.ledger.maps
    again = traced("infinity")({**named, "policy": "random"})
    assert identical(again.logits, drawn.logits)


@pytest.mark.filterwarnings("ignore:toprovar. policy='skipvar' was told no code sums:RuntimeWarning")
@pytest.mark.parametrize("name", list(POLICIES))
def test_every_policy_meets_the_same_budget(name):
    options = {**OPEN, "policy": name, "budget": 1.4, "scale_exit": None, "min_scale": -3}
    report = report_of(traced("prenorm-fused-rope")(options).run)
    assert 1.4 <= report.flops_dense / report.flops <= 1.45
