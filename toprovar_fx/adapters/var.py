"""Adapter for FoundationVision/VAR and models built like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex

from torch import Tensor, nn

from .._torch_private import shadow
from ..errors import AdapterError
from ..schedules import Schedule
from .base import GENERATE, Adapter, Replacement
from .cache import LayerState
from .overrides import Overrides
from .run import Run, active_run
from .structure import Requirement, caches_by_attribute, has_parts, takes, untouched


class AnnouncedSides(tuple[int, ...]):
    """The sides of the token maps; a loop over them announces each scale, and ends at a scale exit.

    Outside a generation it is the tuple that it was made of, and copies are plain tuples.
    """

    model: nn.Module

    def __iter__(self) -> Iterator[int]:
        """Iterate; every element asks the generation that runs."""
        run = active_run(self.model)
        for scale, side in enumerate(super().__iter__()):
            if run is not None and not run.begin_scale(scale):
                return
            yield side

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return tuple, (list(super().__iter__()),)


class VARAdapter(Adapter):
    """Runs all blocks of a VAR as one compiled step.

    Nothing in the blocks stops Dynamo but the cache (`adapters/cache.py`). The rest of the loop does:
    sampling with a generator, and `PhiPartiallyShared`, which picks a convolution with numpy; that code stays
    eager, outside the step.
    """

    family = "FoundationVision/VAR"
    requirements = (
        Requirement(
            f"a method {GENERATE}(B, label_B, ...)",
            lambda model: takes(getattr(model, GENERATE), "B", "label_B"),
        ),
        Requirement(
            "patch_nums, a tuple of sides that starts with 1", lambda model: model.patch_nums[0] == 1
        ),
        Requirement(
            "blocks, a ModuleList of modules called as block(x=..., cond_BD=..., attn_bias=...)",
            lambda model: (
                bool(len(model.blocks))
                and all(takes(type(block).forward, "x", "cond_BD", "attn_bias") for block in model.blocks)
            ),
        ),
        Requirement(
            "block.attn with mat_qkv, proj and cached_k, cached_v, switched by kv_caching(enable)",
            lambda model: all(
                caches_by_attribute(block.attn) and takes(type(block.attn).forward, "x", "attn_bias")
                for block in model.blocks
            ),
        ),
        Requirement(
            "a quantiser in vae_quant_proxy, which holds the code sum outside the blocks",
            lambda model: has_parts(model.vae_quant_proxy[0]),
        ),
        Requirement(
            "methods of its class, not replaced on the instance",
            lambda model: (
                untouched(model, GENERATE)
                and all(untouched(module, "forward") for b in model.blocks for module in (b, b.attn))
            ),
        ),
    )
    replacements = (
        Replacement(GENERATE, "opens a generation around upstream's method, which still runs"),
        Replacement(
            "patch_nums",
            "a tuple that announces each scale to the generation, and ends the loop at a scale exit: the "
            "code sum so far goes to the decoder as it is",
        ),
        Replacement("blocks[0].forward", "runs the compiled step of all blocks"),
        Replacement("blocks[1:].forward", "hand on the result of the step"),
        Replacement(
            "attn.cached_k, attn.cached_v (in the step only)",
            "None at first and concatenated at every scale: written into preallocated buffers instead",
        ),
    )

    def install(self, overrides: Overrides) -> None:
        """Replace what `replacements` lists."""
        super().install(overrides)
        sides = AnnouncedSides(self.model.patch_nums)
        sides.model = self.model
        overrides.attribute(self.model, "patch_nums", sides)

    def find_blocks(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.model.blocks)

    def attention_of(self, block: Any) -> Any:
        """The self-attention of a block."""
        return block.attn

    def view(self, block: Any) -> nn.Module:
        """The block with an attention that caches in buffers."""
        return shadow(block, attn=self.cached(self.attention_of(block)))

    def step_function(self) -> Callable[..., Tensor]:
        """All blocks; the layer's cache goes to its attention as the mask argument."""
        views = self.views

        def step(x: Tensor, cond: Tensor, keys: list[Tensor], values: list[Tensor], end: int) -> Tensor:
            for view, own_keys, own_values in zip(views, keys, values, strict=True):
                x = view(x=x, cond_BD=cond, attn_bias=LayerState(own_keys, own_values, end))
            return x

        return step

    def schedule_of(self, arguments: Mapping[str, Any]) -> Schedule:
        """The model's own sides."""
        return Schedule(tuple((side, side) for side in self.model.patch_nums))

    def inputs(self, run: Run, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """The condition."""
        if given["attn_bias"] is not None:
            raise AdapterError("attn_bias was given to a block while generating: expected None, as upstream")
        return (given["cond_BD"],)

    def try_block(self, x: Tensor, inputs: tuple[Any, ...], state: LayerState) -> Tensor:
        """The first block."""
        result: Tensor = self.views[0](x=x, cond_BD=inputs[0], attn_bias=state)
        return result
