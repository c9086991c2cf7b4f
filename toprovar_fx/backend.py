"""The backend: `torch.compile(model, backend="toprovar", options={...})`.

Dynamo hands over a graph; the analysis reads it, the passes rewrite a copy, the lowering makes it callable,
and the runtime decides at every scale what of it runs. What cannot be rewritten is compiled as plain Inductor
would.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ._torch_private import compile_with_dynamo_inputs, restarts, without_dynamo_wrapper
from .analysis.reasons import Fallback, Reason, Unsupported
from .dense_program import DenseProgram, dense_memory
from .equal_blocks import by_equal_blocks
from .errors import GraphError, OptionError, ToProVARError
from .live_programs import keeps_alive, remember
from .lowering.constant_floats import hold_floats, with_constant_floats
from .lowering.region import Region, not_compiled
from .options import Options
from .passes.context import PassContext
from .passes.pipeline import rewrite_step
from .passes.step import PassRecord
from .program import StepProgram
from .recording import is_observed
from .runtime.failures import on_failure
from .runtime.generation import current_generation
from .runtime.graphs_per_scale import refuse_unfinished
from .runtime.silence import note_graph
from .runtime.verify import PermutationCheck

log = logging.getLogger(__name__)

Compiled = Callable[..., Any]


def toprovar(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, object] | Options | None = None,
    mode: str | None = None,
) -> Compiled:
    """Compile one graph that Dynamo captured.

    Args:
        gm: the graph; it is read, never changed.
        example_inputs: real tensors and SymInts.
        options: see `toprovar_fx.Options`; presets are the option `preset`.
        mode: not used by this backend.

    Raises:
        OptionError: an invalid option, or `mode`.
        GraphError: with `strict`, a graph that cannot be pruned.
    """
    if mode is not None:
        raise OptionError(f"mode={mode!r}: expected no mode; presets are given as options={{'preset': ...}}")
    note_graph()
    settings = Options.parse(options)
    lowering = _lowering(settings)
    try:
        _refuse_gradients(example_inputs)
        context = PassContext(
            lowering,
            PermutationCheck(settings.verify),
            _hints(),
            static=settings.step_sizes == "static",
            compacts=settings.compacts,
            on_failure=on_failure(settings),
        )
        step, records = rewrite_step(with_constant_floats(gm), settings, context)
        for site in step.sites:
            if site.block.facts is not None:
                refuse_unfinished(site.block.facts.length, settings)
    except Unsupported as verdict:
        return _dense(
            gm, example_inputs, settings, lowering, [PassRecord("analysis", fallbacks=[verdict.fallback])]
        )
    except Exception as error:  # a fault in a pass, whatever it is: the graph runs dense instead
        if settings.on_error == "raise" or isinstance(error, (ToProVARError, *restarts())):
            raise
        log.warning("toprovar: a pass failed", exc_info=True)
        why = Fallback(Reason.FAILED_REWRITE, detail=f"{type(error).__name__}: {error}")
        return _dense(gm, example_inputs, settings, lowering, [PassRecord("passes", fallbacks=[why])])
    fallbacks = [fallback for record in records for fallback in record.fallbacks]
    if settings.strict and fallbacks:
        raise GraphError(str(fallbacks[0]))
    if all(site.block.facts is None for site in step.sites):
        return _dense(gm, example_inputs, settings, lowering, records)
    hold_floats(gm)
    return remember(StepProgram(step, records, settings, lowering, context))


def _dense(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    options: Options,
    lowering: str,
    records: list[PassRecord],
) -> Compiled:
    """The graph as plain Inductor would run it, with the reasons kept for the report."""
    fallbacks: list[Fallback] = [fallback for record in records for fallback in record.fallbacks]
    one_token = all(fallback.reason is Reason.ONE_TOKEN for fallback in fallbacks)
    if not one_token:
        if options.strict:
            raise GraphError(str(fallbacks[0]))
        if options.rewrites:
            log.warning("toprovar leaves a graph dense: %s", fallbacks[0])
    # A single token takes milliseconds on a CPU, and compiling its graph ten seconds.
    as_traced = lowering == "eager" or (
        one_token and options.lowering == "auto" and not _on_cuda(example_inputs)
    )
    # The region counts, for which it does not matter what a float is.
    region = Region(with_constant_floats(gm), "eager", name="whole graph, dense")
    memory = dense_memory(region, options, one_token)
    call: Compiled = gm.forward
    parts: Sequence[Region] = ()
    # Calls of blocks cost nothing in a recording; without one they are host time that the whole graph saves.
    recorded = one_token and memory is not None and options.step_code != "fused"
    shared = _by_blocks(gm, options, lowering) if recorded and not as_traced else None
    if shared is not None:
        call, parts = shared
    elif not as_traced:
        started = time.perf_counter()
        try:
            call = compile_with_dynamo_inputs(gm, example_inputs)
        except restarts():
            raise
        except Exception as error:  # of a compiler, whatever its fault is
            failed = on_failure(options)
            if failed is None:
                raise
            fallbacks.append(not_compiled(region.name, error))
            failed(fallbacks[-1])
        region.compile_seconds.append(time.perf_counter() - started)
    # Dynamo puts the program into a wrapper, as it puts Inductor's function; one of them is enough.
    bare = without_dynamo_wrapper(call)
    program = remember(DenseProgram(bare, region, records, options, fallbacks, one_token, memory, parts))
    no_attention = any(fallback.reason is Reason.NO_ATTENTION for fallback in fallbacks)
    if no_attention and not as_traced and not is_observed() and keeps_alive(call, program):
        # No part of a generation's step, and nobody counts its calls: it costs what Inductor's costs.
        return call
    return program


def _by_blocks(
    gm: fx.GraphModule, options: Options, lowering: str
) -> tuple[Compiled, Sequence[Region]] | None:
    try:
        return by_equal_blocks(gm, options, lowering)
    except Exception as error:  # a fault in the outlining, whatever it is: the graph is compiled whole
        if options.on_error == "raise" or isinstance(error, (ToProVARError, *restarts())):
            raise
        log.warning("toprovar: a step of one token could not be outlined", exc_info=True)
        return None


def _lowering(options: Options) -> str:
    return "inductor" if options.lowering == "auto" else options.lowering


def _on_cuda(example_inputs: Sequence[Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.is_cuda for value in example_inputs)


def _refuse_gradients(example_inputs: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in example_inputs
    ):
        raise Unsupported(Reason.GRADIENTS)


def _hints() -> dict[str, int]:
    """Sizes that code is tuned for: the largest scale's of the generation that asked for the compilation."""
    running = current_generation()
    if running is None:
        return {}
    largest = running.schedule.tokens[-1]
    return {"L": largest, "K": max(2, largest // 2), "offset": running.schedule.ends[-1] - largest}
