"""What `accelerate` replaces, that the undo puts it back, and what it says of unknown models."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import toprovar_fx
from benchmarks.upstream_shims import flash_attn_varlen_kvpacked_func
from toprovar_fx import accelerate, restore
from toprovar_fx.errors import AdapterError, OptionError

from .models.like_upstream import KINDS, SCHEDULE, Case, same
from .models.like_var import Attention, LikeVAR

LOSSLESS = {"preset": "lossless", "lowering": "eager"}
ORDER = [name for name in KINDS if name != "infinity, unfused"]


def attributes(model: nn.Module) -> dict[tuple[str, str], object]:
    """Every attribute of every module, by identity."""
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            found[path, name] = id(value)
        for table in (module._parameters, module._buffers, module._modules):
            found.update({(path, f".{name}"): id(value) for name, value in table.items()})
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_undo_restores_every_attribute(kind):
    case = Case(kind)
    case.generate()  # what a generation of upstream itself leaves behind is not ours
    case.model.sums = []
    before, keys = attributes(case.model), list(case.model.state_dict())
    dense = case.generate()
    handle = accelerate(case.model, LOSSLESS)
    assert list(case.model.state_dict()) == keys
    assert attributes(case.model) != before
    case.generate(images=2)
    handle.restore()
    handle.restore()
    after = attributes(case.model)
    changed = {place for place in before.keys() | after.keys() if before.get(place) != after.get(place)}
    assert changed <= {("", "sums")}
    assert same(case.generate(), dense)


def test_restore_by_model_and_as_a_context():
    case = Case("var")
    with accelerate(case.model, LOSSLESS) as handle:
        assert handle.model is case.model
        assert handle.family == "FoundationVision/VAR"
        assert len(handle.replacements) == 5
        assert "autoregressive_infer_cfg" in vars(case.model)
    assert "autoregressive_infer_cfg" not in vars(case.model)
    accelerate(case.model, LOSSLESS)
    restore(case.model)
    assert "autoregressive_infer_cfg" not in vars(case.model)
    for model in (case.model, 3):
        with pytest.raises(AdapterError, match="is not accelerated"):
            restore(model)


def test_the_undo_refuses_where_somebody_else_replaced_something():
    case = Case("var")
    handle = accelerate(case.model, LOSSLESS)
    ours = case.model.blocks[1].forward
    case.model.blocks[1].forward = lambda x, **_: x
    with pytest.raises(AdapterError, match=r"Block\.forward was replaced after"):
        handle.restore()
    assert "autoregressive_infer_cfg" in vars(case.model)
    case.model.blocks[1].forward = ours
    handle.restore()


@pytest.mark.parametrize("kind", ORDER)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_an_accelerated_model_are_not_accelerated(kind, copied):
    case, other = Case(kind, depth=2), Case(kind, seed=2, depth=2)
    expected = other.generate()
    accelerate(other.model, LOSSLESS)
    other.model.sums = []
    case.model = copied(other.model)
    if kind == "infinity":
        assert case.model.unregistered_blocks[0] is case.model.block_chunks[0].module[0]
    restore(other.model)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.zero_()
    assert same(case.generate(), expected)
    accelerate(case.model, LOSSLESS)
    assert same(case.generate(), expected)


def test_the_model_works_as_before_outside_its_generation_method():
    case = Case("var")
    accelerate(case.model, LOSSLESS)
    x, cond = torch.randn(2, 5, 32), torch.randn(2, 32)
    plain = Case("var")
    with torch.no_grad():
        for block, expected in zip(case.blocks(), plain.blocks(), strict=True):
            assert torch.equal(block(x, cond, None), expected(x, cond, None))
    assert tuple(case.model.patch_nums) == plain.model.patch_nums
    assert toprovar_fx.current_generation() is None


def test_an_unknown_model_is_named_with_what_is_known():
    with pytest.raises(
        AdapterError, match=r"Linear is no model that accelerate\(\) knows.*VAR and .*Infinity"
    ):
        accelerate(nn.Linear(2, 2))
    with pytest.raises(AdapterError, match=r"expected a torch\.nn\.Module"):
        accelerate("var")


class KeptElsewhere(Attention):
    """Without the switch of upstream's cache."""

    kv_caching = None


def test_what_a_similar_model_lacks_is_named():
    case = Case("var")
    case.model.blocks[1].attn = KeptElsewhere(32, 2)
    with pytest.raises(
        AdapterError, match=r"LikeVAR resembles .*/VAR but lacks: block\.attn with .*kv_caching"
    ):
        accelerate(case.model)
    case = Case("infinity")
    case.model.add_lvl_embeding_only_first_block = 0
    case.model.rope2d_freqs_grid = {}
    case.blocks()[0].ca.cos_attn = True
    with pytest.raises(
        AdapterError, match=r"LikeInfinity resembles .*/Infinity but lacks: block\.ca .*; level"
    ):
        accelerate(case.model)


def test_a_model_that_is_patched_already_is_refused():
    case = Case("var")
    case.model.blocks[2].forward = lambda x, **_: x
    with pytest.raises(AdapterError, match="methods of its class, not replaced on the instance"):
        accelerate(case.model)


def test_errors_before_anything_is_replaced():
    case = Case("var")
    with pytest.raises(OptionError):
        accelerate(case.model, {"presett": "fast"})
    accelerate(case.model, LOSSLESS)
    with pytest.raises(AdapterError, match="is accelerated already"):
        accelerate(case.model, LOSSLESS)
    case.model.train()
    with pytest.raises(AdapterError, match=r"expected model\.eval\(\)"):
        case.generate()


def test_a_block_that_computes_something_else_is_refused_at_its_first_step():
    case = Case("infinity")
    attention = case.blocks()[0].ca
    kind = type(attention)
    attention.__class__ = type("Doubled", (kind,), {"forward": doubled(kind.forward)})
    accelerate(case.model, LOSSLESS)
    with pytest.raises(AdapterError, match=r"the first block gives another result than .*Infinity"):
        case.generate()


def doubled(forward):
    """A cross-attention with the parts of upstream's and another result."""
    namespace = {"plain": forward, "flash_attn_varlen_kvpacked_func": flash_attn_varlen_kvpacked_func}
    exec("def forward(self, q, ca_kv):\n    return 2 * plain(self, q, ca_kv)", namespace)
    return namespace["forward"]


class NeverCached(Attention):
    """Ignores its cache."""

    def forward(self, x, attn_bias):
        torch.manual_seed  # noqa: B018 - upstream's module knows torch, so must this one
        return self.proj(x)


def test_an_attention_that_caches_nothing_is_refused_at_its_first_step():
    model = LikeVAR()
    for block in model.blocks:
        block.attn.__class__ = NeverCached
    case = Case("var")
    case.model = model.eval()
    accelerate(model, LOSSLESS)
    with pytest.raises(AdapterError, match=r"appended nothing to cached_k and cached_v"):
        case.generate()


def test_a_schedule_without_a_table_and_one_with_frames_are_refused():
    case = Case("infinity")
    accelerate(case.model, LOSSLESS)
    with pytest.raises(AdapterError, match="no position table for scale_schedule"):
        case.generate(scale_schedule=[*SCHEDULE[:-1], (1, 8, 8)])
    with pytest.raises(AdapterError, match=r"expected \(1, height, width\)"):
        case.generate(scale_schedule=[(1, 1, 1), (2, 2, 2)])
