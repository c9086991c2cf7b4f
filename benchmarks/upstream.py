"""Unmodified upstream VAR and Infinity through `accelerate`: same bits, same pruning as a plain reference.

    python -m benchmarks.upstream --var PATH --infinity PATH

PATH is a clone of FoundationVision/VAR or FoundationVision/Infinity; either may be left out. Weights are
random. Needs `pip install einops` for Infinity's quantiser, and neither flash-attn nor timm nor a GPU. Both
models take about half an hour on a CPU core; `--depth 4 --scales 7` is a look of some minutes.
Infinity runs as it is and, for the tolerance, without its rounding to bfloat16 (`UpstreamInfinity`).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.upstream_models import Outcome, Upstream, UpstreamInfinity, UpstreamVAR
from benchmarks.upstream_oracle import PlainPruning
from toprovar_fx import Accelerated, accelerate
from toprovar_fx.live_programs import programs

KEEP = {-3: 0.5, -2: {0: 0.25, 1: 0.0, 2: 0.5, -1: 0.75}, -1: 0.4}
SUBSET = {
    "preset": "criterion",
    "keep": KEEP,
    "entropy_source": "previous_scale",
    "protected_layers_first": 0,
    "protected_layers_last": 0,
}


@dataclass
class Limit:
    """What may differ through Inductor: a tolerance, or what differs through plain Inductor as well."""

    tolerance: float
    control: float | None

    @property
    def accepted(self) -> float:
        """Largest accepted difference; a drawn bit that differs makes any two generations unlike."""
        return self.tolerance if self.control is None else max(self.tolerance, 3 * self.control)

    def __str__(self) -> str:
        own = "" if self.control is None else f", Inductor's own {self.control:.1e}"
        return f"<= {self.accepted:.0e}{own}"


@dataclass
class Row:
    """One line of the table."""

    model: str
    check: str
    lowering: str
    found: str
    wanted: str
    passed: bool


def check_model(model: Upstream, tolerance: float) -> Iterator[Row]:
    """All rows of one model."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        dense = model.generate()
        spread = float(torch.stack([logits.std() for logits in dense.logits]).min())
        yield Row(
            model.name, "least std of a scale's logits", "upstream", f"{spread:.2f}", "> 0.1", spread > 0.1
        )
        limit = Limit(tolerance, _control(model, dense) if model.rounds else None)
        for lowering in ("eager", "inductor"):
            with accelerate(model.model, {"preset": "lossless", "lowering": lowering}) as handle:
                yield _equal(model, "keep all", lowering, model.generate(), dense, limit)
                if lowering == "inductor":
                    yield from _recompiles(model, handle)
        keeps = None
        for lowering in ("eager", "inductor"):
            with accelerate(model.model, {**SUBSET, "lowering": lowering}) as handle:
                pruned = model.generate()
                yield from _verified(model, handle, lowering)
                keeps = _keeps(handle)
            with PlainPruning(model.blocks(), model.sides, keeps):
                reference = model.generate()
            yield _close(model, "subset", lowering, pruned, reference, limit)
            far = pruned.deviation(dense)
            yield Row(model.name, "subset against dense", lowering, f"{far:.1e}", "> 1e-2", far > 1e-2)


def _equal(model: Upstream, check: str, lowering: str, found: Outcome, want: Outcome, limit: Limit) -> Row:
    if lowering == "eager":
        same = found.equals(want)
        text = "equal" if same else f"differs by {found.deviation(want):.1e}"
        return Row(model.name, check, lowering, text, "bit for bit", same)
    return _close(model, check, lowering, found, want, limit)


def _close(model: Upstream, check: str, lowering: str, found: Outcome, want: Outcome, limit: Limit) -> Row:
    largest = max(float(logits.abs().max()) for logits in want.logits)
    off = found.deviation(want)
    text = "equal" if found.equals(want) else f"{off:.1e} of {largest:.1f}"
    return Row(model.name, check, lowering, text, str(limit), off <= limit.accepted)


def _control(model: Upstream, dense: Outcome) -> float:
    """How far plain Inductor, given every block of upstream's, ends from upstream."""
    blocks = model.blocks()
    for block in blocks:
        block.compile(backend="inductor", dynamic=True)
    try:
        return model.generate().deviation(dense)
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def _verified(model: Upstream, handle: Accelerated, lowering: str) -> Iterator[Row]:
    """The permutation check passed wherever a layer was to be pruned."""
    assert handle.report is not None
    ledger = handle.report.controller.ledger
    worst = max(ledger.deviations.values(), default=1.0)
    pruned = sum(run.arm == "pruned" for run in ledger.runs)
    passed = not ledger.fallbacks and pruned == len(ledger.deviations) > 0
    found = f"worst {worst:.1e}, {pruned} layer runs pruned"
    yield Row(model.name, "permutation check", lowering, found, "no fallback", passed)


def _keeps(handle: Accelerated) -> dict[tuple[int, int], torch.Tensor]:
    assert handle.report is not None
    ledger = handle.report.controller.ledger
    skipped = {
        (run.scale, run.layer): torch.empty(2, 0, dtype=torch.int64) for run in ledger.runs if not run.kept
    }
    return {**skipped, **ledger.keep_sets}


def _recompiles(model: Upstream, handle: Accelerated) -> Iterator[Row]:
    """Nothing is compiled where everything was seen before."""

    def interrupted() -> None:
        try:
            model.generate(seed=5, fail_at=3)
        except KeyboardInterrupt:
            model.generate(seed=6)

    yield _none_compiled(model, handle, "second image, other text", lambda: model.generate(seed=2))
    model.generate(images=2, seed=3)
    yield _none_compiled(model, handle, "second batch size, seen", lambda: model.generate(images=2, seed=4))
    yield _none_compiled(model, handle, "after an exception", interrupted)


def _none_compiled(model: Upstream, handle: Accelerated, what: str, run: Callable[[], object]) -> Row:
    before = _compilations(handle)
    text = "0"
    with torch.compiler.set_stance("fail_on_recompile"):
        try:
            run()
        except RuntimeError as error:
            text = str(error).splitlines()[0]
    more = _compilations(handle) - before
    text = f"{more} of Inductor" if text == "0" and more else text
    return Row(model.name, f"recompiles: {what}", "inductor", text, "0", text == "0")


def _compilations(handle: Accelerated) -> int:
    known = programs(handle.options)
    return sum(len(region.compile_seconds) for program in known for region in program.regions)


def main() -> int:
    """Run the checks; 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--var", type=Path, help="clone of FoundationVision/VAR")
    parser.add_argument("--infinity", type=Path, help="clone of FoundationVision/Infinity")
    parser.add_argument("--depth", type=int, help="layers, instead of 16 (VAR) and 12 (Infinity); even")
    parser.add_argument("--scales", type=int, default=10, help="7 or 10: the first so many of the schedule")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="accepted absolute difference, fp32")
    parser.add_argument("--unfused", action="store_true", help="Infinity with fused_norm=False as well")
    parser.add_argument("--unrounded", action="store_true", help="Infinity without its rounding alone")
    arguments = parser.parse_args()
    if arguments.var is None and arguments.infinity is None:
        parser.error("expected --var PATH or --infinity PATH")
    makers: list[Callable[[], Upstream]] = []
    if arguments.var:
        makers.append(lambda: UpstreamVAR(arguments.var, arguments.depth or 16, arguments.scales))
    for fused in (True, False) if arguments.unfused else (True,):
        for unrounded in ((True,) if arguments.unrounded else (False, True)) if arguments.infinity else ():
            sizes = arguments.depth or 12, arguments.scales, fused, unrounded
            makers.append(partial(UpstreamInfinity, arguments.infinity, *sizes))
    rows = []
    print(f"| {'model':34} | {'check':38} | {'lowering':8} | {'found':36} | {'wanted':11} | passed |")
    print(f"|{'-' * 36}|{'-' * 40}|{'-' * 10}|{'-' * 38}|{'-' * 13}|{'-' * 8}|")
    for make in makers:
        for row in check_model(make(), arguments.tolerance):
            rows.append(row)
            cells = (
                f"| {row.model:34} | {row.check:38} | {row.lowering:8} | {row.found:36} | {row.wanted:11} |"
            )
            print(cells, "yes    |" if row.passed else "NO     |", flush=True)
    print(json.dumps({"torch": torch.__version__, "rows": [asdict(row) for row in rows]}))
    return int(not all(row.passed for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
