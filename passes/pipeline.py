"""The order of the passes, written once, and the one place that times, dumps and records them."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from torch import fx

from ..analysis.reasons import Fallback
from ..options import Options
from .attention_entropy import attention_entropy
from .cache_offset import cache_offset
from .context import PassContext
from .layer_skip import layer_skip
from .outline_blocks import outline_blocks
from .scale_depth_gate import scale_depth_gate
from .step import PassRecord, Step
from .token_gather import token_gather

log = logging.getLogger(__name__)

# Each needs the ones before it: gates go around blocks that know their place in the cache.
ORDER = (cache_offset, attention_entropy, scale_depth_gate, token_gather, layer_skip)


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
    """
    dump = _Dump(options.dump_dir)
    started = time.perf_counter()
    step = outline_blocks(traced)
    record = PassRecord("outline_blocks", True, [site.layer for site in step.sites])
    record.fallbacks = _fallbacks(step)
    record.milliseconds = (time.perf_counter() - started) * 1e3
    records = [record]
    dump("outline_blocks", traced, step.graph)
    for run in ORDER:
        started = time.perf_counter()
        result = run(step, options, context)
        result.record.milliseconds = (time.perf_counter() - started) * 1e3
        dump(result.record.name, step.graph, result.step.graph)
        step = result.step
        records.append(result.record)
        log.debug(
            "%s: layers %s in %.1f ms", result.record.name, result.record.sites, result.record.milliseconds
        )
    return step, records


def _fallbacks(step: Step) -> list[Fallback]:
    found = []
    for site in step.sites:
        if site.block.fallback is not None:
            known = site.block.fallback
            found.append(Fallback(known.reason, known.node, known.source, known.detail, site.layer))
    return found


class _Dump:
    """Numbered `<n>.<pass>.before/after.py` files of the step graph, if a folder was asked for."""

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder) if folder else None
        self._count = 0

    def __call__(self, name: str, before: fx.GraphModule, after: fx.GraphModule) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for moment, graph in (("before", before), ("after", after)):
            text = f"{graph.code}\n\n# {_modules(graph)}\n"
            (self._folder / f"{self._count}.{name}.{moment}.py").write_text(text)
        self._count += 1


def _modules(graph: fx.GraphModule) -> str:
    children = [f"{name}: {type(module).__name__}" for name, module in graph.named_children()]
    return ", ".join(children)
