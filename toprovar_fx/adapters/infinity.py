"""Adapter for FoundationVision/Infinity and models built like it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._torch_private import shadow, varies
from ..errors import AdapterError
from ..schedules import Schedule
from .base import GENERATE, Adapter, Replacement
from .cache import CachedAttention, LayerState
from .infinity_structure import REQUIREMENTS
from .run import Run
from .text import PackedText, TextAttention

# Upstream's attention reads its table by a key; here there is one table, under the key of an empty schedule.
_NO_SCHEDULE: tuple[()] = ()
_KEY = str(_NO_SCHEDULE)


class ScaleLimit:
    """Stands in for `trunk_scale`: upstream's loop compares every scale with it and ends where it says so."""

    def __init__(self, run: Run, limit: int) -> None:
        self._run, self._limit = run, limit

    def __le__(self, scale: int) -> bool:
        """Answer `scale >= trunk_scale`: whether the scale is not to be run."""
        return scale >= self._limit or not self._run.begin_scale(scale)


class RotaryAttention(nn.Module):
    """An Infinity self-attention that gets the table of its scale instead of a dictionary of all.

    What upstream does: look up a table under the schedule's text, and cut it at an offset summed by numpy
    from the scale index, which stops Dynamo and makes every scale a graph of its own. What happens here: the
    table is cut before the graph and comes as an input; upstream's code then cuts it from 0.
    """

    def __init__(self, attention: CachedAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        x: Tensor,
        state: LayerState,
        attn_fn: object = None,
        scale_schedule: object = None,
        rope2d_freqs_grid: object = None,
        scale_ind: int = 0,
    ) -> Tensor:
        """Attend; a block with `fused_norm=False` passes no `scale_ind`, and rotates from position 0."""
        assert state.rope is not None
        table = state.rope[0] if scale_ind else state.rope[1]
        # It was cut to this scale; without this the trace knows only that it is long enough.
        torch._check(table.shape[-2] == x.shape[1])
        result: Tensor = self.attention(x, state, None, _NO_SCHEDULE, {_KEY: table}, 0)
        return result


class InfinityAdapter(Adapter):
    """Runs all blocks of an Infinity as one compiled step, guidance inside the layers included."""

    family = "FoundationVision/Infinity"
    requirements = REQUIREMENTS
    replacements = (
        Replacement(
            GENERATE,
            "opens a generation around upstream's method, which still runs; cfg_insertion_layer goes to the "
            "step, and trunk_scale is an object that announces each scale and ends the loop at a scale exit: "
            "the code sum so far goes to the decoder as it is",
        ),
        Replacement("first block's forward", "runs the compiled step of all blocks"),
        Replacement("other blocks' forward", "hand on the result of the step"),
        Replacement(
            "sa.cached_k, sa.cached_v (in the step only)",
            "None at first and concatenated at every scale: written into preallocated buffers instead",
        ),
        Replacement(
            "rope2d_freqs_grid, scale_schedule, scale_ind (in the step only)",
            "a dictionary keyed by text, and an offset summed by numpy: the scale's table comes as an input",
        ),
        Replacement(
            "ca.forward (in the step only)",
            "flash-attn's variable-length metadata is made of the token count: one operator makes it, and "
            "the projection of the text runs once per generation",
        ),
    )

    def find_blocks(self) -> list[nn.Module]:
        """The blocks of all chunks."""
        return [block for chunk in self.model.block_chunks for block in chunk.module]

    def attention_of(self, block: Any) -> Any:
        """The self-attention of a block."""
        return block.sa

    def view(self, block: Any) -> nn.Module:
        """The block with a cache in buffers, its own position table and packed text."""
        return shadow(
            block,
            sa=RotaryAttention(self.cached(self.attention_of(block))),
            ca=TextAttention(block.ca),
        )

    def step_function(self) -> Callable[..., Tensor]:
        """All blocks, with the guidance that upstream's loop would apply between them."""
        views = self.views

        def step(
            x: Tensor,
            cond: Tensor,
            texts: list[PackedText],
            rope: tuple[Tensor, Tensor],
            guided: tuple[bool, ...],
            weights: tuple[Tensor, Tensor] | None,
            keys: list[Tensor],
            values: list[Tensor],
            end: int,
        ) -> Tensor:
            for layer, view in enumerate(views):
                state = LayerState(keys[layer], values[layer], end, rope)
                x = _run_block(view, x, cond, texts[layer], state)
                if guided[layer] and weights is not None:
                    images = x.shape[0] // 2
                    mixed = weights[0] * x[:images] + weights[1] * x[images:]
                    # The trace cannot tell that twice half the rows are the rows; expand says so.
                    x = torch.cat((mixed, mixed), 0).expand(x.shape)
            return x

        return step

    def prepare(self, run: Run) -> None:
        """Take the guidance out of upstream's loop and put the limit in."""
        arguments = run.arguments
        listed = list(arguments["cfg_insertion_layer"])
        guided = tuple(sorted({len(self.blocks) + item for item in listed if item < 0}))
        if all(layer > 0 for layer in guided):
            # Upstream refuses others with a message of its own.
            arguments["cfg_insertion_layer"] = [item for item in listed if item >= 0]
        # One truth value per layer: an index that differs between two calls becomes a symbol in the trace,
        # and Dynamo takes no symbol for a member of a tuple.
        run.kept["guided"] = tuple(layer in guided for layer in range(len(self.blocks)))
        arguments["trunk_scale"] = ScaleLimit(run, arguments["trunk_scale"])

    def schedule_of(self, arguments: Mapping[str, Any]) -> Schedule:
        """The sides of the call's `scale_schedule`."""
        entries = [tuple(entry) for entry in arguments["scale_schedule"]]
        if any(len(entry) != 3 or entry[0] != 1 for entry in entries):
            raise AdapterError(f"scale_schedule={entries}: expected (1, height, width) of every scale")
        return Schedule(tuple((height, width) for _, height, width in entries))

    def inputs(self, run: Run, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """Condition, text of every layer, position tables, and guidance."""
        for name in ("attn_bias_or_two_vector", "attn_fn"):
            if given[name] is not None:
                raise AdapterError(
                    f"{name} was given to a block while generating: expected None (use_flex_attn=False)"
                )
        cfg = run.arguments["cfg_list"][run.scale]
        guided: tuple[bool, ...] = run.kept["guided"]
        weights = None
        if any(guided) and cfg != 1:
            weights = tuple(torch.tensor(weight, dtype=torch.float64) for weight in (cfg, 1 - cfg))
        return given["cond_BD"], self._texts(run, given["ca_kv"]), self._tables(run, given), guided, weights

    def try_block(self, x: Tensor, inputs: tuple[Any, ...], state: LayerState) -> Tensor:
        """The first block."""
        cond, texts, rope, _, _ = inputs
        return _run_block(self.views[0], x, cond, texts[0], state._replace(rope=rope))

    def _texts(self, run: Run, packed: tuple[Tensor, Tensor, int]) -> list[PackedText]:
        """Keys and values of the text for every layer, made once per generation."""
        text, starts, longest = packed
        if run.kept.get("text") is not text:
            run.kept["text"] = text
            size = varies(text.new_empty(longest, 0), 0)
            attentions = [view.ca for view in self.views]
            run.kept["texts"] = [
                PackedText(attention.project(text), starts, size) for attention in attentions
            ]
        texts: list[PackedText] = run.kept["texts"]
        return texts

    def _tables(self, run: Run, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Position tables [2, 1, 1, 1, L, E/2] at the scale's own tokens, and at the first tokens."""
        if "rope" not in run.kept:
            key, tables = str(tuple(given["scale_schedule"])), given["rope2d_freqs_grid"]
            if key not in tables:
                raise AdapterError(
                    f"no position table for scale_schedule={key}: expected one of {len(tables)} known"
                )
            run.kept["rope"] = tables[key].to(given["x"].device)
        table: Tensor = run.kept["rope"]
        length = given["x"].shape[1]
        return table[:, :, :, :, run.end - length : run.end], table[:, :, :, :, :length]


def _run_block(view: nn.Module, x: Tensor, cond: Tensor, text: PackedText, state: LayerState) -> Tensor:
    """A block of the step; 1 for `scale_ind` only tells the attention whether the block hands it on."""
    result: Tensor = view(
        x=x,
        cond_BD=cond,
        ca_kv=text,
        attn_bias_or_two_vector=state,
        attn_fn=None,
        scale_schedule=_NO_SCHEDULE,
        rope2d_freqs_grid=None,
        scale_ind=1,
    )
    return result
