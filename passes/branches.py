"""The branches of a layer that decides itself: whole, K tokens, or nothing, with outputs of one shape.

`torch.cond` wants branches that write to nothing, share no memory with what they are given, and return equal
shapes. So new cache rows are returned, K of them padded to L; the graph around writes all L slots, of which
those behind the valid ones are written again before anybody reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from .._torch_private import cond
from ..criteria.depth import low_entropy_ratio
from ..criteria.rows import join_cfg_rows


@dataclass(frozen=True)
class BranchLayout:
    """What goes into every branch and comes out of it.

    Attributes:
        operands: names of the inputs, in order.
        hidden: name of the hidden state [R, L, C].
        caches: names of the key and value cache [R, H, slots, E], or ().
        keeps: whether the keep set [R, K] is an output (zeros where nothing is pruned).
        rho_of: None, or the rule for guidance rows by which rho is made of the entropies and returned.

    Outputs in order: hidden [R, L, C], keep, rho, new key rows, new value rows [R, H, L, E].
    """

    operands: tuple[str, ...]
    hidden: str
    caches: tuple[str, ...]
    keeps: bool
    rho_of: Literal["shared", "cond", "per_row"] | None


class Branch(nn.Module):
    """Base of the branches.

    Args:
        layout: inputs and outputs.
        arm: the functional graph that runs, or None; its inputs are found by name.
    """

    def __init__(self, layout: BranchLayout, arm: fx.GraphModule | None) -> None:
        super().__init__()
        self.layout, self.arm = layout, arm
        inputs = [] if arm is None else [n for n in arm.graph.nodes if n.op == "placeholder"]
        self.takes = tuple(layout.operands.index(str(node.target)) for node in inputs)

    def given(self, operands: tuple[Any, ...]) -> dict[str, Any]:
        """The operands by name."""
        return dict(zip(self.layout.operands, operands, strict=True))

    def ran(self, operands: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The outputs of the graph."""
        assert self.arm is not None
        found = self.arm(*(operands[at] for at in self.takes))
        return found if isinstance(found, tuple) else (found,)

    def finish(
        self,
        given: dict[str, Any],
        hidden: Tensor,
        keep: Tensor | None = None,
        rho: Tensor | None = None,
        rows: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, ...]:
        """The outputs in order, each in memory of its own; zeros for what this branch does not make."""
        made: list[Tensor] = [hidden]
        length = hidden.shape[1]
        if self.layout.keeps:
            none = hidden.new_zeros((hidden.shape[0], given["count"]), dtype=torch.int64)
            made.append(none if keep is None else keep)
        if self.layout.rho_of is not None:
            if rho is None:
                zeros = hidden.new_zeros((hidden.shape[0],), dtype=torch.float32)
                rho = join_cfg_rows(zeros, given["images"], self.layout.rho_of)
            made.append(rho)
        for at, name in enumerate(self.layout.caches):
            cache, known = given[name], 0 if rows is None else rows[at].shape[2]
            rest = cache.new_zeros((cache.shape[0], cache.shape[1], length - known, cache.shape[3]))
            made.append(rest if rows is None else torch.cat((rows[at], rest), 2))
        return tuple(value.clone(memory_format=torch.contiguous_format) for value in made)


class WholeBranch(Branch):
    """All tokens."""

    def forward(self, *operands: Any) -> tuple[Tensor, ...]:
        """Run the block."""
        given = self.given(operands)
        hidden, *more = self.ran(operands)
        rho = None
        if self.layout.rho_of is not None:
            entropy, *more = more
            rho = low_entropy_ratio(join_cfg_rows(entropy, given["images"], self.layout.rho_of))
        return self.finish(given, hidden, None, rho, tuple(more))


class PrunedBranch(Branch):
    """The K tokens that the graph selects."""

    def forward(self, *operands: Any) -> tuple[Tensor, ...]:
        """Select, gather, run, scatter."""
        hidden, keep, *rows = self.ran(operands)
        return self.finish(self.given(operands), hidden, keep, None, tuple(rows))


class SkippedBranch(Branch):
    """No token: the last update is added again, or nothing."""

    def forward(self, *operands: Any) -> tuple[Tensor, ...]:
        """Restore."""
        given = self.given(operands)
        hidden = given[self.layout.hidden]
        return self.finish(given, hidden + given["restored"] if "restored" in given else hidden)


class OtherwiseBranch(Branch):
    """What is not pruned: skipped if the operand `skip` says so, else whole."""

    def __init__(self, layout: BranchLayout, skipped: SkippedBranch, whole: WholeBranch) -> None:
        super().__init__(layout, None)
        self.skipped, self.whole = skipped, whole

    def forward(self, *operands: Any) -> tuple[Tensor, ...]:
        """Choose."""
        found = cond(self.given(operands)["skip"], self.skipped, self.whole, operands)
        return tuple(found)
