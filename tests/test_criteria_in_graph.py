"""The statistics run inside a compiled graph: one graph for all lengths, nothing read back, equal values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from toprovar_fx.criteria import (
    bernoulli_tokens,
    frequency_score,
    keep_probability,
    layer_detail,
    low_entropy_ratio,
    normalise_entropy,
    prunability,
    ranking_score,
    select_tokens,
    sigma_ratio,
)
from toprovar_fx.criteria.decision import DecisionRule
from toprovar_fx.criteria.decision import decide as decision_of
from toprovar_fx.criteria.weighing import Weighing

RULE = DecisionRule(0.4, "ge", 0.0, Weighing("shared", True, "mean", 0.3, 0.8, "mean"))


def decide(maps: Tensor) -> tuple[Tensor, ...]:
    """Everything that one layer's map [R, h, w] decides."""
    detail = layer_detail(sigma_ratio(maps), 0.02)
    flat = maps.flatten(1)
    normalised = normalise_entropy(prunability(flat, True), "mean")
    p_keep = keep_probability(normalised, detail, 0.9, 0.3, 0.8)
    rho, rate = low_entropy_ratio(flat), 0.9 * detail.mean().double()
    decision = decision_of(RULE, rho, flat, rate, rate.new_full((), 30.0), len(maps))
    chosen = decision.past, decision.skip, decision.prune
    return rho, detail, p_keep, *chosen, select_tokens(-flat, 5)


STATISTICS: dict[str, Callable[[Tensor], object]] = {
    "all together": decide,
    "centred": lambda maps: sigma_ratio(maps, centre=True),
    "tokens": lambda maps: sigma_ratio(maps.flatten(1).unsqueeze(-1).expand(-1, -1, 8).cumsum(-1)),
    "rank": lambda maps: normalise_entropy(maps.flatten(1), "rank"),
    "minmax": lambda maps: normalise_entropy(maps.flatten(1), "minmax"),
    "literal": lambda maps: normalise_entropy(maps.flatten(1), "literal"),
    "high entropy kept": lambda maps: select_tokens(ranking_score(maps.flatten(1), False), 4),
    "drawn": lambda maps: bernoulli_tokens(maps.flatten(1).softmax(-1), 4, 3, 1),
    "frequency": frequency_score,
}


@pytest.mark.parametrize("name", STATISTICS)
def test_nothing_is_read_back(name: str) -> None:
    """On tensors without values every read of one would raise; none is in the graph either."""
    graph = make_fx(STATISTICS[name], tracing_mode="symbolic")(torch.rand(2, 6, 7))
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert not [target for target in called if "_local_scalar_dense" in target or "nonzero" in target]
    assert not [target for target in called if "svd" in target or "eig" in target]


@pytest.mark.parametrize("name", STATISTICS)
def test_one_graph_serves_every_length(name: str, fresh_dynamo: None) -> None:
    compiled = torch.compile(STATISTICS[name], backend="aot_eager", fullgraph=True, dynamic=True)
    for height, width in ((6, 7), (8, 9), (12, 16)):
        maps = torch.rand(2, height, width)
        with torch.compiler.set_stance("default" if height == 6 else "fail_on_recompile"):
            torch.testing.assert_close(compiled(maps), STATISTICS[name](maps))


@pytest.mark.gpu
@pytest.mark.parametrize("name", STATISTICS)
def test_the_host_does_not_wait_for_the_device_and_values_equal_the_cpus(name: str) -> None:
    maps = torch.rand(2, 12, 16).round(decimals=1)  # many ties
    expected = STATISTICS[name](maps)
    on_device = maps.cuda()
    STATISTICS[name](on_device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = STATISTICS[name](on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found, expected, check_device=False)
