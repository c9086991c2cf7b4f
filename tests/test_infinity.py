"""The transformer against a second, plainly written version of the same equations, and its traced graphs."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from toprovar_fx.errors import OptionError, ScheduleError
from toprovar_fx.models.cache import KVCache
from toprovar_fx.models.cache_memory import CacheSizes
from toprovar_fx.models.configs import CONFIGS, InfinityConfig, config_named
from toprovar_fx.models.infinity import Infinity
from toprovar_fx.models.text_encoder import SceneTextEncoder
from toprovar_fx.schedules import Schedule

from .plain_infinity import plain_logits, plain_softmax_attention

TINY = InfinityConfig(
    depth=3,
    width=32,
    heads=2,
    bits=4,
    text_channels=24,
    text_maxlen=8,
    block_chunks=1,
    text_pool_heads=4,
    rope_grid=8,
)
SCHEDULE = Schedule(((1, 1), (2, 2), (3, 2), (4, 4)), grid=(8, 8))


def build(config=TINY, schedule=SCHEDULE, seed=0):
    """Return a model whose every parameter is large and non-zero, so that no term hides in a zero."""
    torch.manual_seed(seed)
    model = Infinity(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for block in model.blocks():
            block.sa.scale_mul_1H11.copy_(torch.tensor([1.0, 9.0]).view(1, 2, 1, 1))
    model.set_schedule(schedule)
    return model


def text_of(rows, tokens=8, channels=24, lengths=None):
    torch.manual_seed(1)
    lengths = torch.randint(1, tokens + 1, (rows,)) if lengths is None else torch.tensor(lengths)
    return torch.randn(rows, tokens, channels), lengths


def codes_of(rows, schedule=SCHEDULE, bits=4):
    torch.manual_seed(2)
    return [torch.randn(rows, tokens, bits) for tokens in schedule.tokens[1:]]


@torch.no_grad()
def run_scales(model, features, lengths, codes, schedule=SCHEDULE, step=None):
    context = model.prepare_text(features, lengths)
    cache = KVCache(CacheSizes.of(model.config, len(features), schedule.ends[-1], model.dtype))
    step = model if step is None else step
    logits = []
    for scale, end in enumerate(schedule.ends):
        hidden = model.embed_scale(codes[scale - 1], scale) if scale else model.embed_first(context)
        logits.append(step(hidden, context, cache, end))
    return logits


def test_scales_agree_with_the_plain_version_of_every_image():
    model = build()
    features, lengths = text_of(3, lengths=[1, 5, 8])
    codes = codes_of(3)
    logits = torch.cat(run_scales(model, features, lengths, codes), 1)
    for image in range(3):
        own = features[image], int(lengths[image]), [c[image] for c in codes]
        expected = plain_logits(model, *own, SCHEDULE, SCHEDULE.grid)
        error = (logits[image].double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-5


def test_cross_attention_agrees_with_plain_attention_over_unpadded_text():
    torch.manual_seed(0)
    attention = build().get_submodule("block_chunks.0.module.0.ca")
    text, x, lengths = torch.randn(3, 8, 32), torch.randn(3, 7, 32), torch.tensor([2, 8, 1])
    padded = torch.arange(8) >= lengths[:, None]
    mask = torch.zeros(3, 8).masked_fill(padded, -torch.inf)[:, None, None]
    with torch.no_grad():
        result = attention(x, *attention.text_kv(text), mask)
        for row in range(3):
            k, v = F.linear(text[row, : lengths[row]], attention.mat_kv.weight).chunk(2, -1)
            v = v + attention.v_bias
            q = attention.mat_q(x[row])
            heads = zip(q.chunk(2, -1), k.chunk(2, -1), v.chunk(2, -1), strict=True)
            expected = attention.proj(torch.cat([plain_softmax_attention(*h, 0.25) for h in heads], -1))
            torch.testing.assert_close(result[row], expected, atol=1e-6, rtol=1e-6)


def test_a_batch_of_different_prompts_equals_each_alone():
    model = build()
    features, lengths = text_of(3, lengths=[3, 8, 1])
    codes = codes_of(3)
    together = torch.cat(run_scales(model, features, lengths, codes), 1)
    for row in range(3):
        one = slice(row, row + 1)
        short = features[one, : lengths[row]]
        alone = torch.cat(run_scales(model, short, lengths[one], [c[one] for c in codes]), 1)
        torch.testing.assert_close(together[one], alone, atol=2e-5, rtol=1e-5)


def test_text_past_its_length_has_no_influence():
    model = build()
    features, lengths = text_of(2, lengths=[3, 5])
    changed = features.clone()
    changed[0, 3:] = 7.0
    changed[1, 5:] = -9.0
    for a, b in zip(
        run_scales(model, features, lengths, codes_of(2)),
        run_scales(model, changed, lengths, codes_of(2)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("merged_tokens", [0, 5, 11, 130])
@pytest.mark.parametrize("scales", [1, 3, 4])
def test_teacher_forcing_equals_the_scale_steps(merged_tokens, scales):
    model = build()
    features, lengths = text_of(2)
    codes = codes_of(2)
    steps = torch.cat(run_scales(model, features, lengths, codes), 1)[:, : SCHEDULE.ends[scales - 1]]
    context = model.prepare_text(features, lengths)
    logits = model.forward_train(codes[: scales - 1], context, merged_tokens=merged_tokens)
    torch.testing.assert_close(logits, steps, atol=5e-6, rtol=1e-5)


def test_every_parameter_gets_a_gradient():
    model = build()
    features, lengths = text_of(4)
    features = model.unconditional(features, torch.tensor([True, False, False, True]))
    model.forward_train(codes_of(4), model.prepare_text(features, lengths)).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_few_steps_of_training_learn_from_scratch():
    torch.manual_seed(0)
    model = Infinity(TINY)
    model.set_schedule(SCHEDULE)
    features, lengths = text_of(4)
    codes = codes_of(4)
    target = torch.randint(0, 2, (4, SCHEDULE.ends[-1], 4))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        logits = model.forward_train(codes, model.prepare_text(features, lengths))
        loss = F.cross_entropy(logits.unflatten(-1, (-1, 2)).flatten(0, 2), target.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.01)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_half_precision_stays_near_float32(dtype, tolerance):
    model = build()
    features, lengths = text_of(2)
    codes = codes_of(2)
    exact = torch.cat(run_scales(model, features, lengths, codes), 1)
    half = torch.cat(run_scales(build().to(dtype), features, lengths, codes), 1)
    assert half.dtype == dtype
    assert (half.float() - exact).abs().mean() < tolerance * exact.abs().mean()


def test_rotation_table_stays_float32_and_out_of_the_state_dict():
    model = build().to(torch.bfloat16)
    assert model.rope.dtype == torch.float32
    assert torch.equal(model.rope, build().rope)
    assert not any("rope" in key for key in model.state_dict())


def test_autocast_runs_forward_and_backward():
    model = build()
    features, lengths = text_of(2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.forward_train(codes_of(2), model.prepare_text(features, lengths))
    logits.float().square().mean().backward()
    exact = model.forward_train(codes_of(2), model.prepare_text(features, lengths))
    assert (logits - exact).abs().mean() < 0.06 * exact.abs().mean()


def test_unconditional_rows_take_the_learned_text():
    model = build()
    features, _ = text_of(3, tokens=5)
    dropped = model.unconditional(features, torch.tensor([False, True, False]))
    assert torch.equal(dropped[0], features[0])
    assert torch.equal(dropped[1], model.cfg_uncond[:5])


def test_schedules_and_inputs_that_do_not_fit_are_refused():
    model = Infinity(TINY)
    features, lengths = text_of(1)
    with pytest.raises(ScheduleError, match="set_schedule"):
        model.forward_train([], model.prepare_text(features, lengths))
    model.set_schedule(SCHEDULE)
    with pytest.raises(ScheduleError, match=r"inputs of \[5\] tokens: expected \[4\]"):
        model.forward_train([torch.zeros(1, 5, 4)], model.prepare_text(features, lengths))
    with pytest.raises(ScheduleError, match="15 levels"):
        model.set_schedule(Schedule(tuple((side, side) for side in range(1, 17))))


@pytest.mark.parametrize(
    "sizes",
    [{"heads": 3}, {"heads": 16}, {"text_pool_heads": 5}, {"block_chunks": 2}, {"bits": 6, "patchify": True}],
)
def test_sizes_that_do_not_divide_are_refused(sizes):
    values = {**TINY.__dict__, **sizes}
    with pytest.raises(OptionError, match="expected"):
        InfinityConfig(**values)


def test_unknown_model_names_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'infinity-2b'"):
        config_named("infinity-2B-reg")


@pytest.mark.parametrize(("name", "millions"), [("infinity-2b", 2205), ("infinity-8b", 8376)])
def test_official_sizes_and_keys(name, millions):
    with torch.device("meta"):
        model = Infinity(CONFIGS[name])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    width = CONFIGS[name].width
    assert shapes["cfg_uncond"] == (512, 2048)
    assert shapes["text_proj_for_sos.ca.mat_q"] == (1, 16, width // 16)
    assert shapes["block_chunks.7.module.3.sa.scale_mul_1H11"] == (1, CONFIGS[name].heads, 1, 1)
    assert shapes["block_chunks.0.module.0.ca.mat_kv.weight"] == (2 * width, width)
    assert shapes["head_nm.ada_lin.1.weight"] == (2 * width, width)
    assert shapes["shared_ada_lin.1.bias"] == (6 * width,)
    assert shapes["lvl_embed.weight"] == (15, width)
    names_of_a_block = {
        k.removeprefix("block_chunks.0.module.0.") for k in shapes if "chunks.0.module.0." in k
    }
    assert names_of_a_block == {
        "ada_gss",
        *(f"sa.{name}" for name in ["scale_mul_1H11", "q_bias", "v_bias", "zero_k_bias", "mat_qkv.weight"]),
        *(f"sa.proj.{kind}" for kind in ("weight", "bias")),
        *(f"ca.{name}" for name in ["v_bias", "zero_k_bias", "mat_q.weight", "mat_q.bias", "mat_kv.weight"]),
        *(f"ca.proj.{kind}" for kind in ("weight", "bias")),
        *(f"{name}.{kind}" for name in ("ca_norm", "ffn.fc1", "ffn.fc2") for kind in ("weight", "bias")),
    }


def test_a_generation_makes_two_graphs_without_breaks_and_never_recompiles(fresh_dynamo):
    config = InfinityConfig(**{**TINY.__dict__, "depth": 2})
    schedule = Schedule.named("scenes")
    model = build(config, schedule)
    features, lengths = text_of(2)
    codes = codes_of(2, schedule)
    graphs = []

    def backend(graph_module, _example_inputs):
        graphs.append(graph_module)
        return graph_module.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    eager = run_scales(model, features, lengths, codes, schedule)
    first = run_scales(model, features, lengths, codes, schedule, step=compiled)
    assert len(graphs) == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        second = run_scales(model, features, lengths, codes, schedule, step=compiled)
    for expected, one, two in zip(eager, first, second, strict=True):
        assert torch.equal(expected, one)
        assert torch.equal(expected, two)
    for graph_module in graphs:
        attention = [n for n in graph_module.graph.nodes if "scaled_dot_product" in str(n.target)]
        assert len(attention) == 2 * config.depth
        assert [n.target for n in graph_module.graph.nodes if n.op == "call_module"] == []
        assert sum("rope" in str(n.target) for n in graph_module.graph.find_nodes(op="placeholder")) == 1


def test_cache_size_is_reported_in_advance():
    sizes = CacheSizes.of(TINY, 2, 27, torch.bfloat16)
    cache = KVCache(sizes)
    held = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert sizes.memory_bytes() == held


def test_scene_text_encoder_ignores_padding_and_batch():
    torch.manual_seed(0)
    encoder = SceneTextEncoder(vocab_size=11, width=32, layers=2, heads=4, max_words=6).eval()
    ids = torch.randint(1, 11, (3, 6))
    lengths = torch.tensor([2, 6, 1])
    features = encoder(ids, lengths)
    assert features.shape == (3, 6, 32)
    other = ids.clone()
    other[0, 2:] = 3
    torch.testing.assert_close(encoder(other, lengths)[0, :2], features[0, :2])
    torch.testing.assert_close(encoder(ids[:1, :2], lengths[:1])[0], features[0, :2], atol=1e-5, rtol=1e-5)
    assert isinstance(encoder.words, nn.Embedding)
