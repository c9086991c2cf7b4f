"""Weights of a transformer that is trained from scratch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from .infinity import Infinity


@torch.no_grad()
def initialise(model: Infinity, *, gamma: float = 1e-3, modulation: float = 0.5, head: float = 0.02) -> None:
    """Initialise every parameter, in the manner of Infinity and VAR.

    Linear weights are truncated normal with standard deviation ``0.9 / sqrt(C)``, which is the usual 0.02 at
    the 2B model's width of 2048. The three residual projections of each block shrink by ``1 / sqrt(2 depth)``
    so that the residual stream does not grow with depth. Gates start near zero, so every block starts near
    its cross-attention.

    Args:
        model: the transformer.
        gamma: factor on the residual gates (``ada_gss`` gamma1 and gamma2).
        modulation: factor on scales and shifts.
        head: factor on the output weights; small, so the first predictions are near one half.
    """
    width = model.config.width
    std = 0.9 / math.sqrt(width)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    position_std = math.sqrt(1 / width / 3)
    for tensor in (model.pos_start, model.lvl_embed.weight, model.text_proj_for_sos.ca.mat_q):
        nn.init.trunc_normal_(tensor, std=position_std)
    nn.init.trunc_normal_(model.cfg_uncond, std=1.2 / math.sqrt(model.config.text_channels))
    residual = 1 / math.sqrt(2 * model.config.depth)
    for block in model.blocks():
        for projection in (block.sa.proj, block.ca.proj, block.ffn.fc2):
            projection.weight.mul_(residual)
        nn.init.normal_(block.ada_gss, std=1 / math.sqrt(width))
        block.ada_gss[:, :, :2].mul_(gamma)
        block.ada_gss[:, :, 2:].mul_(modulation)
    model.head_nm.get_parameter("ada_lin.1.weight").mul_(modulation)
    model.head.weight.mul_(head)
