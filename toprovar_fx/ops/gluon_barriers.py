"""Barriers within the partitions of a Gluon kernel."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

# Of the warps of a partition; Triton 3.7 renamed it.
partition_barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def release(free, stage):
    """Tell the producer that all warps of this partition have read a tile."""
    partition_barrier()
    mbarrier.arrive(free.index(stage), count=1)
