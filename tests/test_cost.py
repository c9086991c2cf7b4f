"""The cost model: expressions equal `torch.utils.flop_counter` at any sizes, and prices equal what runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from toprovar_fx._torch_private import SymbolicInputs, fake_run
from toprovar_fx.cost.expressions import Cost, GraphCosts
from toprovar_fx.cost.roofline import Roofline
from toprovar_fx.cost.scale_sizes import ScaleSizes
from toprovar_fx.errors import OptionError
from toprovar_fx.flops import flop_counter
from toprovar_fx.input_specs import KEPT, OFFSET, at_sizes, tensor_spec
from toprovar_fx.lowering.region import Region
from toprovar_fx.runtime.report import report_of
from toprovar_fx.schedules import Schedule

from .models.fixtures import traced
from .models.subjects import OPEN, SQUARE

pytestmark = pytest.mark.usefixtures("fresh_traces")

L = sympy.Symbol("L", integer=True, positive=True)
CPU = torch.device("cpu")
KEEP = {3: 0.5, 4: {1: 0.25, 2: 0.0, 3: 0.7}, 5: {1: 0.0, 2: 0.4}}


def graph_of(function: Callable[..., object], *shapes: tuple[object, ...]) -> fx.GraphModule:
    """The traced function; its inputs are float32 of these shapes, sizes being numbers or symbols."""
    graph = fx.symbolic_trace(function)
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for holder, shape in zip(holders, shapes, strict=True):
        sizes = tuple(sympy.sympify(size) for size in shape)
        holder.meta["toprovar_spec"] = tensor_spec(sizes, torch.float32, CPU)
    return graph


def counted(costs: GraphCosts, region: Region | fx.GraphModule, **sizes: int) -> tuple[int, int]:
    """FLOPs by the expression, and by a counter at numbers."""
    graph = region.graph if isinstance(region, Region) else region
    values = {symbol: sizes[str(symbol)] for spec in costs.specs for symbol in spec.symbols}
    with flop_counter() as counter:
        fake_run(graph, SymbolicInputs([at_sizes(spec, values) for spec in costs.specs], {}))
    found = costs.expressions(tuple(values.items())), costs.at(tuple(values.items()))
    assert int(found[0].flops.xreplace(values)) == found[1].flops
    return found[1].flops, counter.get_total_flops()


def step_regions(name: str, **options: object) -> dict[str, Region]:
    """The graphs that a generation ran, by what they do."""
    ledger = traced(name)({**OPEN, **options}).controller.ledger
    found = {run.arm: run.region for run in ledger.runs if run.region is not None}
    return {**found, "rest": ledger.other[-1][1]}


def everything(x: Tensor, w: Tensor, image: Tensor) -> Tensor:
    """Products in all the ways in which models write them."""
    y = F.linear(x, w) + x @ w
    y = torch.einsum("blc,cd->bld", y, w) + torch.matmul(x, w.t())
    y = torch.baddbmm(y, x, w.expand(2, 8, 8))
    scores = F.softmax(x @ y.transpose(1, 2), -1) @ y
    heads = F.scaled_dot_product_attention(x[:, None], y[:, None], scores[:, None])
    return heads.sum() + F.conv2d(image, image[:1].repeat(4, 1, 1, 1)[..., :2, :2]).sum()


def test_every_kind_of_product_to_the_flop():
    graph = graph_of(everything, (2, L, 8), (8, 8), (3, 3, L, L))
    costs = GraphCosts(graph)
    for length in (5, 2, 40):
        expression, counter = counted(costs, graph, L=length)
        assert expression == counter > 0


@pytest.mark.parametrize("name", ["infinity", "prenorm-fused-rope"])
def test_every_graph_of_a_step_to_the_flop(name):
    pruned = step_regions(name, keep=KEEP, score="frequency")
    tapped = step_regions(name, min_scale=2, tau=0.2, entropy_source="previous_layer")
    own = step_regions(name, keep={4: 0.5, 5: 0.3}, entropy_source="same_layer")
    regions = [pruned[arm] for arm in ("dense", "pruned", "rest")]
    for region in (*regions, tapped["tapped"], tapped["pruned"], own["pruned"]):
        # An empty cache and all kept, a full cache and some.
        for tokens, offset, kept in ((9, 0, 9), (64, 66, 40)):
            expression, counter = counted(region.costs, region, s81=tokens, offset=offset, K=kept, images=1)
            assert expression == counter > 0


def test_the_expression_of_a_pruned_block():
    region = step_regions("infinity", keep=KEEP, score="frequency")["pruned"]
    found = region.costs.expressions(((L, 64), (OFFSET, 66), (KEPT, 26)))
    # 2 rows of width 64: projections of K tokens, queries and values over offset + K keys; cross-attention 8.
    per_token = 2 * 2 * (4 + 2 + 8) * 64**2 + 2 * 4 * 8 * 64
    assert sympy.expand(found.flops - (per_token * KEPT + 2 * 4 * 64 * KEPT * (OFFSET + KEPT))) == 0


def sliced(x: Tensor, w: Tensor) -> Tensor:
    return x[:, :16] @ w


def test_expressions_know_for_which_sizes_they_hold():
    graph = graph_of(sliced, (2, L, 8), (8, 4))
    costs = GraphCosts(graph)
    for length in (40, 20, 9, 3, 16, 17):
        assert counted(costs, graph, L=length) == (2 * 2 * min(length, 16) * 8 * 4,) * 2


def padded(x: Tensor, w: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, (x.size(1) + 3) // 4 * 4 - x.size(1))) @ w


def test_a_size_that_is_no_polynomial():
    graph = graph_of(padded, (2, L, 8), (8, 4))
    costs = GraphCosts(graph)
    for length in (6, 9, 12, 13):
        assert counted(costs, graph, L=length) == (2 * 2 * -(-length // 4) * 4 * 8 * 4,) * 2


def without_symbols(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w).narrow(0, 0, x.size(0).bit_length())


def test_a_graph_that_takes_no_symbols_is_counted_at_numbers():
    graph = graph_of(without_symbols, (L, 8), (8, 4))
    costs = GraphCosts(graph)
    for length in (5, 7, 5):
        assert counted(costs, graph, L=length) == (2 * length * 8 * 4,) * 2
        assert sympy.Eq(L, length) in costs.expressions(((L, length),)).conditions


def layers(x: Tensor, w: Tensor, v: Tensor, cache: Tensor) -> Tensor:
    hidden = torch.relu(x @ w) * 2
    cache[:, :4].copy_(hidden[:4].t())
    return (hidden @ v).view(-1, 2, 8).transpose(0, 1) + 1


def test_bytes_of_a_small_graph():
    graph = graph_of(layers, (L, 8), (8, 32), (32, 16), (32, 100))
    found = GraphCosts(graph).expressions(((L, 10),))
    product = (8 * L + 8 * 32 + 32 * L) + (32 * L + 32 * 16 + 16 * L)
    rows, result = 4 * 32, 16 * L
    assert sympy.expand(found.bytes_fused - 4 * (product + rows + result)) == 0
    # relu and the factor read and write the hidden state, the copy reads and writes its rows.
    assert sympy.expand(found.bytes_unfused - 4 * (product + 4 * 32 * L + 2 * rows + 2 * result)) == 0


def table(x: Tensor, w: Tensor, index: Tensor) -> Tensor:
    return torch.gather(w, 0, index) + x.expand(4, 4)


def test_a_gather_reads_only_what_it_takes_and_an_expanded_value_is_read_once():
    graph = graph_of(table, (1, 4), (1000, 4), (4, 4))
    holder = list(graph.graph.nodes)[2]
    holder.meta["toprovar_spec"] = tensor_spec((sympy.Integer(4), sympy.Integer(4)), torch.int64, CPU)
    cost = GraphCosts(graph).at(())
    gather, total = 4 * 16 + 8 * 16 + 4 * 16, 4 * 16 + 4 * 4 + 4 * 16
    assert cost == Cost(0, 4 * 16 + 8 * 16 + 4 * 4 + 4 * 16, gather + total)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": KEEP, "score": "frequency"},
        {"keep": KEEP, "score": "frequency", "pruned_kv": "keep"},
        {"keep": KEEP, "entropy_source": "previous_scale"},
        {"keep": KEEP, "entropy_source": "same_layer"},
    ],
    ids=str,
)
def test_the_price_of_a_plan_is_what_its_run_costs(options):
    model = traced("infinity")
    report = report_of(model({**OPEN, **options}).run)
    (step,) = {
        p for p in model.programs.values() if p.options == report.controller.options and len(p.regions) > 1
    }
    kept = {(scale, layer): count for scale, layer, count, tokens in report.kept if count < tokens}
    price = step.price(SQUARE, kept)
    assert price.total.flops == report.flops
    assert price.total_dense.flops == report.flops_dense
    assert price.ratio == report.flops_dense / report.flops > 1
    # The first scale's graph is another one, and reads the head's modulation in another shape.
    assert list(price.scales[1:]) == list(report.costs.values())[1:]


def test_the_price_refuses_what_the_step_cannot_run():
    model = traced("infinity")
    model({**OPEN, "keep": KEEP})
    step = next(p for p in model.programs.values() if len(p.regions) > 1)
    for error, call in (
        (r"kept\[9, 0\]=3: expected a scale below 6", lambda: step.price(SQUARE, {(9, 0): 3})),
        (r"kept\[5, 0\]=65: expected .* 0 to 64 tokens", lambda: step.price(SQUARE, {(5, 0): 65})),
        ("rows=3: expected 2", lambda: step.price(SQUARE, rows=3)),
        (
            "a schedule of 530 tokens: expected at most 131",
            lambda: step.price(Schedule.named("scenes").first(8)),
        ),
    ):
        with pytest.raises(OptionError, match=error):
            call()


def test_sizes_follow_the_schedule():
    rows, other, end = (sympy.Symbol(name, integer=True) for name in ("rows", "other", "end"))
    seen = [
        (1, {rows: 4, L: 4, end: 5, other: 5, OFFSET: 1}),
        (2, {rows: 4, L: 9, end: 14, other: 5, OFFSET: 5}),
    ]
    assert ScaleSizes(SQUARE, seen).at(4) == {rows: 4, L: 36, end: 66, other: 5, OFFSET: 30}
    # One scale alone cannot tell rows from tokens: structure does.
    known = ScaleSizes(SQUARE, seen[:1], {L}, {rows, other}).at(4)
    assert known == {rows: 4, L: 36, end: 66, other: 5, OFFSET: 30}


def test_roofline():
    device = Roofline(flops_per_s=100e12, bytes_per_s=2e12)
    assert device.latency_ms(Cost(10**12, 10**9, 10**13)) == pytest.approx(10)
    assert device.latency_ms(Cost(10**9, 10**10, 10**13)) == pytest.approx(5)
    with pytest.raises(OptionError, match="bytes_per_s=0"):
        Roofline(1e12, 0)


def test_counting_leaves_other_threads_alone():
    """torch's own counter hooks every module of the process, and other threads fail in its tracker."""
    model, failed = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), []

    def elsewhere() -> None:
        try:
            with torch.inference_mode():
                model(torch.ones(2, 4))
        except Exception as error:
            failed.append(error)

    with flop_counter() as counter:
        hooks = torch.nn.modules.module
        assert not hooks._global_forward_pre_hooks and not hooks._global_forward_hooks
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        model(torch.ones(3, 4))
    assert not failed
    assert counter.get_total_flops() == 2 * 3 * 4 * 4, "this thread's alone"
