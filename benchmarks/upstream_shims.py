"""Stand-ins for packages that upstream VAR and Infinity import, so that clones run on a machine without them.

A package that is installed is used as it is. Three stand-ins compute something, in plain PyTorch: attention
and attention of variable length of flash-attn, and timm's stochastic depth, which does nothing in evaluation.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None
) -> Tensor:
    """Attention of [B, L, H, E]; FastVAR calls it, upstream's inference does not."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
) -> Tensor:
    """Attention of packed queries [Nq, H, E] to packed keys and values [Nk, 2, H, E], one by one."""
    mixed = torch.empty_like(q)
    starts, ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for row in range(len(starts) - 1):
        queries = slice(starts[row], starts[row + 1])
        keys, values = kv[ends[row] : ends[row + 1]].to(q.dtype).unbind(1)
        q_row, k_row, v_row = (part.transpose(0, 1)[None] for part in (q[queries], keys, values))
        row_mixed = F.scaled_dot_product_attention(q_row, k_row, v_row, scale=softmax_scale)
        mixed[queries] = row_mixed[0].transpose(0, 1)
    return mixed


class DropPath(nn.Module):
    """timm's stochastic depth in evaluation."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x


_STAND_INS: dict[str, dict[str, object]] = {
    "flash_attn": {
        "flash_attn_func": flash_attn_func,
        "flash_attn_varlen_kvpacked_func": flash_attn_varlen_kvpacked_func,
    },
    "cv2": {},
    "torchvision": {},
    "torchvision.transforms": {},
    "huggingface_hub": {"PyTorchModelHubMixin": type("PyTorchModelHubMixin", (), {})},
    "pytz": {},
    "tqdm": {},
    "timm": {},
    "timm.models": {"register_model": lambda function: function},
    "timm.models.layers": {"DropPath": DropPath, "drop_path": None},
    "timm.loss": {"SoftTargetCrossEntropy": type("SoftTargetCrossEntropy", (nn.Module,), {})},
}


@contextlib.contextmanager
def clone_on_path(clone: Path, probe: str) -> Iterator[None]:
    """Import from a clone, with a stand-in for every package above that is not installed."""
    if not (clone / probe).is_file():
        raise SystemExit(f"{clone}: expected a clone with the file {probe}")
    missing = {name for name in _STAND_INS if "." not in name and importlib.util.find_spec(name) is None}
    for name, contents in _STAND_INS.items():
        if name.partition(".")[0] in missing:
            module = types.ModuleType(name)
            vars(module).update(contents, __path__=[])
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            sys.modules[name] = module
    sys.path.insert(0, str(clone))
    try:
        yield
    finally:
        sys.path.remove(str(clone))


def forget(package: str) -> None:
    """Take a clone's package out of the imported modules, so that another clone's can take its name."""
    for name in list(sys.modules):
        if name == package or name.startswith(f"{package}."):
            del sys.modules[name]


@contextlib.contextmanager
def nothing_compiled_on_import() -> Iterator[None]:
    """Let `@torch.compile` on functions of a module do nothing while the module is imported.

    Infinity's fused norms are compiled by upstream itself. Bits can only be compared if they run as written.
    """
    with mock.patch.object(torch, "compile", lambda function=None, **kwargs: function or (lambda f: f)):
        yield
