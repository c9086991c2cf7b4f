"""What the published scripts of Infinity, and of its clones, give model and generation at any size."""

from __future__ import annotations

from typing import Any


def model_settings(fused_norm: bool = True) -> dict[str, Any]:
    """Keyword arguments of the model."""
    return {
        "text_maxlen": 512,
        "shared_aln": True,
        "fused_norm": fused_norm,
        "pad_to_multiplier": 128,
        "add_lvl_embeding_only_first_block": 1,
        "use_bit_label": 1,
        "rope2d_each_sa_layer": 1,
        "rope2d_normalized_by_hw": 2,
        "train_h_div_w_list": [1.0],
        "inference_mode": True,
    }


def generation_settings() -> dict[str, Any]:
    """Keyword arguments of a generation."""
    return {
        "top_k": 900,
        "top_p": 0.97,
        "returns_vemb": 1,
        "cfg_insertion_layer": [0],
        "inference_mode": True,
    }
