"""The order of the passes, written once, and the one place that times, checks, dumps and records them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx

from ..analysis.reasons import Fallback, Unsupported
from ..declaration import Pass
from ..errors import OptionError
from ..options import Options
from .attention_entropy import attention_entropy
from .cache_offset import cache_offset
from .context import PassContext
from .dump import Dump
from .graph_gate import graph_gate
from .layer_skip import layer_skip
from .obligations import StepState, check_result
from .outline_blocks import outline_blocks
from .scale_depth_gate import scale_depth_gate
from .step import PassRecord, Step
from .token_gather import token_gather

log = logging.getLogger(__name__)

T = TypeVar("T")

# Each needs the ones before it: gates go around blocks that know their place in the cache.
ORDER = (cache_offset, attention_entropy, scale_depth_gate, token_gather, layer_skip, graph_gate)
BUILT_IN: tuple[Pass[Any, Any], ...] = (outline_blocks, *ORDER)


def ordered(options: Options) -> list[Pass[Any, Any]]:
    """The passes that run on an outlined step: the built-in ones, and those that the options name.

    Raises:
        OptionError: a named pass runs behind one that is not named.
    """
    order: list[Pass[Any, Any]] = list(ORDER)
    waiting = list(options.extensions.passes)
    while waiting:
        placed = {run.name for run in (outline_blocks, *order)}
        ready = [run for run in waiting if run.requires[-1] in placed]
        if not ready:
            needed = waiting[0].requires[-1]
            raise OptionError(
                f"passes={options.passes!r}: expected {needed!r} too, after which {waiting[0].name!r} runs"
            )
        waiting.remove(ready[0])
        order.insert(_place(order, ready[0]), ready[0])
    return order


def _place(order: list[Pass[Any, Any]], new: Pass[Any, Any]) -> int:
    """Behind the pass that `new` runs after, and behind those that were put there before."""
    after = new.requires[-1]
    at = next((at + 1 for at, run in enumerate(order) if run.name == after), 0)
    while at < len(order) and order[at] not in ORDER and order[at].requires[-1] == after:
        at += 1
    return at


def rewrite_step(
    traced: fx.GraphModule, options: Options, context: PassContext
) -> tuple[Step, list[PassRecord]]:
    """Run all passes on a traced scale step.

    Args:
        traced: Dynamo's graph (never changed).
        options: what to prune; neutral options change nothing but the cache offset.
        context: how the block graphs that passes make become callable.

    Returns:
        The rewritten step, and one record per pass.

    Raises:
        Unsupported: the graph as a whole has no structure to rewrite.
        OptionError: the order of the registered passes cannot be met.
        OutputError: `dump_dir` cannot be written.
        ExtensionError: a pass broke an obligation.
    """
    order = ordered(options)
    dump = Dump(options.dump_dir, traced)
    try:
        step, milliseconds = _timed(lambda: outline_blocks(traced, options.deciding.granularity))
    except Unsupported as verdict:
        dump.unsupported(str(verdict))
        raise
    layers = [site.layer for site in step.sites]
    record = PassRecord("outline_blocks", True, layers, _fallbacks(step), milliseconds, traced, step)
    records = [record]
    _close(dump, record)
    if all(site.block.facts is None for site in step.sites):
        # Nothing that any pass could act on: the captured graph itself is compiled.
        order = []
    for run in order:
        state = StepState.of(step)
        result, milliseconds = _timed(lambda run=run, step=step: run(step, options, context))  # type: ignore[misc]
        check_result(run, step, state, result)
        record = result.record
        record.milliseconds, record.before, record.after = milliseconds, step, result.step
        _close(dump, record)
        step = result.step
        records.append(record)
    dump.finish(records)
    return step, records


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    """The result, and the milliseconds it took."""
    started = time.perf_counter()
    result = run()
    return result, (time.perf_counter() - started) * 1e3


def _close(dump: Dump, record: PassRecord) -> None:
    assert record.before is not None and record.after is not None
    dump.step(record.name, record.before, record.after)
    log.debug("pass %s: layers %s in %.1f ms", record.name, record.sites, record.milliseconds)
    for fallback in record.fallbacks:
        log.info("pass %s leaves layer %s dense: %s", record.name, fallback.layer, fallback)


def _fallbacks(step: Step) -> list[Fallback]:
    found = [] if step.fallback is None else [step.fallback]
    for site in step.sites:
        if site.block.fallback is not None:
            known = site.block.fallback
            found.append(Fallback(known.reason, known.node, known.source, known.detail, site.layer))
    return found
