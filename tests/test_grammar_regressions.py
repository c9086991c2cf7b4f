"""Faults that the grammar found, each as the smallest model that showed it."""

from __future__ import annotations

import pytest

from .grammar.judge import judge
from .grammar.spec import BlockSpec, CaseSpec

PLAIN = BlockSpec()
FAULTS = {
    # The first cache row is computed from sizes; nothing else used it, so it moved into the block, which has
    # to take it as an input: ValueError.
    "one-layer": CaseSpec((PLAIN,)),
    # Two of six modulation vectors have no use in a parallel block; the tuple became an input: TypeError.
    "unused-modulation": CaseSpec((BlockSpec(adaln="block", branches="parallel"),) * 2),
    # Parts in float32 deviate more than a float64 stream was allowed to: VERIFICATION.
    "float64-stream": CaseSpec((BlockSpec(norm="rms"), BlockSpec(norm="layer")), residual="wide_stream"),
    # A batch of one row at the scale of one token: L seemed to be ambiguous, an error under `strict`.
    "one-row": CaseSpec((PLAIN, PLAIN), rows="plain"),
    # The residual sum of the last block was not seen behind a cast: NO_BLOCK.
    "cast-sum": CaseSpec((PLAIN, BlockSpec(norm="rms")), residual="wide_sum"),
    # The last block of its kind ended with a cast in the head, to another type than it began with.
    "cast-in-head": CaseSpec((PLAIN, BlockSpec(norm="rms")), residual="wide_stream", head="plain"),
    # The feed-forward network of a last post-norm block was left outside.
    "post-norm": CaseSpec((BlockSpec(placement="post"),), head="none"),
    # A position table at the start of a layer was part of the layer before, whose pruned tokens missed it.
    "table-per-layer": CaseSpec((BlockSpec(position="table"),) * 3),
    # Guidance at the end of a layer joins rows; it was part of the layer: TOKEN_MIXING.
    "guidance-in-a-layer": CaseSpec((BlockSpec(guidance="mixed"), PLAIN), rows="guided"),
    # With one batch row, heads that `bmm` had merged with it were taken for rows and heads: RESHAPED_TOKENS.
    "bmm-of-one-row": CaseSpec((BlockSpec(attention="bmm"),), rows="plain"),
    # Where the scale begins in the schedule, without a cache that begins there: LENGTH_IN_ARITHMETIC.
    "place-without-a-cache": CaseSpec((BlockSpec(attention="flex_distance", cache="none"),)),
    # RoPE as complex numbers: UNKNOWN_OPERATOR.
    "complex-rope": CaseSpec((BlockSpec(position="rope_complex"),) * 2),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS.keys())
def test_found_by_the_grammar_and_fixed(case):
    verdict = judge(case)
    assert verdict.pruned == set(range(verdict.layers)), verdict.fallbacks
    assert not verdict.fallbacks
