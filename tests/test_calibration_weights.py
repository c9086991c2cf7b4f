"""Whose weights a step ran with is told of the weights of then."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from toprovar_fx.calibration.weights import KnownWeights
from toprovar_fx.errors import ProfileError


@pytest.fixture
def known() -> KnownWeights:
    return KnownWeights(fx.GraphModule(nn.Module(), fx.Graph()), layers=2)


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))]


def given_other_memory(each: nn.Parameter) -> None:
    each.data = each.data * 2


@torch.no_grad()
def written(each: nn.Parameter) -> None:
    each.mul_(2)


def test_the_same_weights_are_recognised(known):
    own = parameters()
    weights = known.recognise([torch.ones(2), *own, 7])
    assert known.recognise([torch.zeros(2), *own, 8]) is weights
    assert weights.identity() == known.recognise([torch.ones(2), *parameters(), 7]).identity()


@pytest.mark.parametrize("change", [written, given_other_memory])
def test_weights_that_changed_are_others(known, change):
    own = parameters()
    before = known.recognise(own)
    identity = before.identity()
    late = known.recognise(own)
    change(own[1])
    after = known.recognise(own)
    assert after.identity() != identity == late.identity()
    change(own[1])
    assert known.recognise(own) is not after


@pytest.mark.parametrize("change", [written, given_other_memory])
def test_a_generation_that_is_added_after_its_weights_changed(known, change):
    own = parameters()
    weights = known.recognise(own)
    change(own[0])
    with pytest.raises(ProfileError, match="weights changed after this generation"):
        weights.identity()


def test_models_that_share_a_program_keep_apart(known):
    one, other = parameters(), parameters()
    written(other[0])
    first, second = known.recognise(one), known.recognise(other)
    assert first.identity() != second.identity()
    assert first.identity() == known.recognise(one).identity()


def test_a_model_that_is_gone(known):
    own = parameters()
    weights = known.recognise(own)
    del own
    with pytest.raises(ProfileError, match="the model is gone"):
        weights.identity()
