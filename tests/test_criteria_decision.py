"""`decide` on tensors is what the host's functions decide from the same numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toprovar_fx.criteria.decision import DecisionRule, decide
from toprovar_fx.criteria.depth import depth_from_ratios, join_depths
from toprovar_fx.criteria.rows import join_cfg_rows
from toprovar_fx.criteria.saliency import keep_probability, normalise_entropy
from toprovar_fx.criteria.scores import prunability
from toprovar_fx.criteria.weighing import Weighing

from .counts import keep_count


@given(
    st.data(),
    st.sampled_from(["ge", "le"]),
    st.sampled_from(["shared", "cond", "per_row"]),
    st.sampled_from(["mean", "rank", "minmax", "literal"]),
    st.sampled_from(["mean", "max"]),
    st.booleans(),
    st.integers(4, 40),
    st.integers(1, 3),
)
def test_as_the_host(data, compare, cfg_rows, normalise, batch_rule, keep_low, length, images):
    share = st.floats(0, 1)
    tau, alpha, bucket, skip_below = (data.draw(share) for _ in range(4))
    alphas = sorted((alpha, data.draw(share)))
    detail, weight, bucket = data.draw(share), data.draw(share), max(bucket, 0.05)
    rho = [[data.draw(st.floats(0, 1, width=32)) for _ in range(images)] for _ in range(3)]
    statistic = torch.rand(2 * images, length, generator=torch.Generator().manual_seed(length))
    rule = DecisionRule(
        tau, compare, skip_below, Weighing(cfg_rows, keep_low, normalise, *alphas, batch_rule)
    )
    known = torch.tensor(rho)
    best = known.amax(0) if compare == "ge" else known.amin(0)
    kept = math.ceil(bucket * length - 1e-6)
    rate = torch.tensor(detail, dtype=torch.float64) * weight
    made = decide(rule, best, statistic, rate, torch.tensor(float(kept), dtype=torch.float64), images)

    depths = [depth_from_ratios([one[image] for one in rho], tau, compare) for image in range(images)]
    past = join_depths(depths) is not None
    saliency = prunability(join_cfg_rows(statistic, images, cfg_rows), keep_low)
    p_keep = keep_probability(normalise_entropy(saliency, normalise), detail, weight, *alphas)
    count = keep_count(p_keep, (bucket, 1.0), 0.0, skip_below, batch_rule)
    assert bool(made.past) == past
    assert bool(made.skip) == (past and count == 0)
    assert bool(made.prune) == (past and count == kept and count > 0)


@pytest.mark.parametrize(("compare", "reached"), [("ge", math.inf), ("le", -math.inf)])
def test_a_depth_that_the_host_knows(compare, reached):
    rule = DecisionRule(0.4, compare, 0.0, Weighing("shared", True, "mean", 0.3, 0.8, "mean"))
    statistic, rate = torch.ones(2, 9), torch.ones((), dtype=torch.float64)
    most = torch.full((), 5.0, dtype=torch.float64)
    assert bool(decide(rule, torch.tensor([reached]), statistic, rate, most, 1).prune)
    assert not bool(decide(rule, torch.tensor([-reached]), statistic, rate, most, 1).past)
    assert not bool(decide(rule, torch.tensor([reached]), statistic, rate, -most, 1).prune)
