"""What the Infinity adapter relies on."""

from __future__ import annotations

from typing import Any

from .base import GENERATE
from .structure import Requirement, caches_by_attribute, has_parts, takes, untouched
from .text import KERNEL, kernel_of


def _blocks(model: Any) -> list[Any]:
    return [block for chunk in model.block_chunks for block in chunk.module]


def _attends_to_packed_text(attention: Any) -> bool:
    return (
        has_parts(attention, ("mat_q", "mat_kv", "proj", "proj_drop"), ("v_bias", "zero_k_bias", "scale"))
        and not attention.cos_attn
        and callable(kernel_of(attention))
    )


_BLOCK = ("x", "cond_BD", "ca_kv", "attn_bias_or_two_vector", "attn_fn", "scale_schedule", "scale_ind")
_SELF_ATTENTION = (
    "x",
    "attn_bias_or_two_vector",
    "attn_fn",
    "scale_schedule",
    "rope2d_freqs_grid",
    "scale_ind",
)
_GENERATION = ("scale_schedule", "B", "cfg_list", "cfg_insertion_layer", "trunk_scale")

REQUIREMENTS = (
    Requirement(
        f"a method {GENERATE}({', '.join(_GENERATION)}, ...)",
        lambda model: takes(getattr(model, GENERATE), *_GENERATION),
    ),
    Requirement(
        "block_chunks of blocks in .module (construct the model with block_chunks > 1)",
        lambda model: bool(_blocks(model)),
    ),
    Requirement(
        f"blocks with parameters {', '.join(_BLOCK)}",
        lambda model: all(takes(type(block).forward, *_BLOCK) for block in _blocks(model)),
    ),
    Requirement(
        "block.sa with mat_qkv, proj and cached_k, cached_v, switched by kv_caching(enable), and parameters "
        + ", ".join(_SELF_ATTENTION),
        lambda model: all(
            caches_by_attribute(block.sa) and takes(type(block.sa).forward, *_SELF_ATTENTION)
            for block in _blocks(model)
        ),
    ),
    Requirement(
        f"block.ca with mat_q, mat_kv, v_bias, zero_k_bias, proj, scale, cos_attn=False, calling {KERNEL}",
        lambda model: all(_attends_to_packed_text(block.ca) for block in _blocks(model)),
    ),
    Requirement(
        "rope2d_freqs_grid, position tables [2, 1, 1, 1, L, E/2] keyed by the schedule's text",
        lambda model: (
            bool(model.rope2d_freqs_grid)
            and all(table.dim() == 6 for table in model.rope2d_freqs_grid.values())
        ),
    ),
    Requirement(
        "level embeddings before the first block only (add_lvl_embeding_only_first_block=1)",
        lambda model: bool(model.add_lvl_embeding_only_first_block),
    ),
    Requirement(
        "methods of its class, not replaced on the instance",
        lambda model: (
            untouched(model, GENERATE)
            and all(untouched(module, "forward") for b in _blocks(model) for module in (b, b.sa, b.ca))
        ),
    ),
)
