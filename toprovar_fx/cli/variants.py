"""Named ways to run one pipeline: `eager`, `inductor`, or a preset or policy of this backend."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OptionError, nearest
from ..preset_files import SUFFIX
from .values import parse_options

if TYPE_CHECKING:
    from ..pipeline import InfinityPipeline
    from ..program import StepProgram

DEFAULT_VARIANTS = ("eager", "inductor", "lossless", "balanced", "fast")
# All variants compile the same forward, whose cache of graphs Dynamo limits to 8 by default; what comes later
# runs eagerly.
GRAPHS_PER_VARIANT = 64
INDUCTOR_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Variant:
    """One way to run the transformer.

    Attributes:
        name: as the user wrote it.
        compiler: None for eager, else `inductor` or `toprovar`.
        mode: Inductor's mode.
        options: the backend's options.
        method: the name without its budget, where `at_budgets` added one.
        budget: dense over pruned FLOPs, where `at_budgets` made it for one.
    """

    name: str
    compiler: str | None = None
    mode: str | None = None
    options: Mapping[str, Any] | None = None
    method: str = ""
    budget: float | None = None

    def pipeline(self, dense: InfinityPipeline) -> InfinityPipeline:
        """Return a copy of the eager pipeline ``dense`` that shares its weights and runs in this way.

        Raises:
            OptionError: an option names a scale or layer that the model does not have.
        """
        pipe = copy.copy(dense)
        if self.compiler == "inductor":
            pipe.transformer = torch.compile(dense.transformer, mode=self.mode)
        elif self.compiler == "toprovar":
            # By function, not by name: it also works from a checkout that is not installed.
            from ..backend import toprovar
            from ..option_sizes import refuse_other_sizes
            from ..options import Options

            sizes = len(dense.schedule), dense.transformer.config.depth
            refuse_other_sizes(Options.parse(self.options or {}), *sizes)
            pipe.transformer = torch.compile(
                dense.transformer, backend=toprovar, options=dict(self.options or {})
            )
        return pipe


def parse_variant(text: str) -> Variant:
    """Parse ``eager``, ``inductor``, ``inductor:MODE``, or a preset or policy, ``NAME:key=value:key=value``.

    A preset is a name, or a file that `toprovar tune` wrote.

    Raises:
        OptionError: an unknown name, mode or option.
    """
    name, *details = _split(text, ":")
    if name == "eager":
        if details:
            raise OptionError(f"variant '{text}' has settings, but eager has none")
        return Variant(text)
    if name == "inductor":
        mode = ":".join(details) or "default"
        if mode not in INDUCTOR_MODES:
            raise OptionError(f"unknown Inductor mode '{mode}', expected one of {', '.join(INDUCTOR_MODES)}")
        return Variant(text, "inductor", mode)
    from ..policies.registry import POLICIES
    from ..presets import PRESETS

    names = ["eager", "inductor", *PRESETS, *POLICIES]
    if name not in names and not name.endswith(SUFFIX):
        near = nearest(name, names)
        hint = f"; nearest: {near}" if near else ""
        raise OptionError(f"unknown variant '{name}', expected one of {', '.join(names)}{hint}")
    return Variant(text, "toprovar", options=parse_options(name, details))


def parse_variants(text: str, budgets: Sequence[float] = ()) -> list[Variant]:
    """Parse variants separated by commas, as `at_budgets` does; commas inside brackets belong to a value.

    Raises:
        OptionError: there is none, one occurs twice, or one is not valid.
    """
    names = [name.strip() for name in _split(text, ",")]
    if not all(names):
        raise OptionError(f"'{text}' holds an empty variant, expected e.g. {','.join(DEFAULT_VARIANTS)}")
    if len(set(names)) < len(names):
        raise OptionError(f"'{text}' names a variant twice, expected each once")
    return at_budgets(names, budgets)


def at_budgets(names: Sequence[str], budgets: Sequence[float]) -> list[Variant]:
    """Parse variants; those in the form ``@NAME`` stand for the variant and for itself at every budget.

    A budget is spent on tokens: what the variant says about scales that are not run does not hold there.

    Raises:
        OptionError: as of `parse_variant`, or ``@`` before what prunes nothing.
    """
    found: dict[str, Variant] = {}
    for name in names:
        plain = parse_variant(name.removeprefix("@"))
        found[plain.name] = plain
        if not name.startswith("@"):
            continue
        if plain.options is None:
            raise OptionError(f"'{name}' prunes nothing: expected a preset or policy after the @")
        for budget in budgets:
            at = f"{plain.name} at {budget:g}x"
            options = {**plain.options, "budget": f"{budget:g}x", "scale_exit": None}
            found[at] = Variant(at, plain.compiler, None, options, plain.name, budget)
    return list(found.values())


def room_for_graphs(variants: int = 1) -> AbstractContextManager[object]:
    """Let so many variants of one model compile in the block."""
    from .._torch_private import recompile_limit

    return recompile_limit(GRAPHS_PER_VARIANT * variants)


class CompiledGraphs:
    """Counts the graphs that this process has compiled, to see whether a timed round compiled."""

    def __init__(self) -> None:
        # Programs that nobody else holds any more must not leave between two counts.
        self._steps: dict[int, StepProgram] = {}

    def __call__(self) -> int:
        """The count; it never falls."""
        from .._torch_private import unique_graphs
        from ..live_programs import programs
        from ..program import StepProgram

        self._steps.update({id(step): step for step in programs() if isinstance(step, StepProgram)})
        # Dynamo counts the graphs that stay as they are; a step's regions are compiled when they first run.
        regions = {id(region): region for step in self._steps.values() for region in step.regions}
        return unique_graphs() + sum(len(region.compile_seconds) for region in regions.values())


def _split(text: str, separator: str) -> Sequence[str]:
    """Split where ``separator`` is in no bracket."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]
