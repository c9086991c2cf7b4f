"""Every private torch interface that the backend touches (torch 2.11 to 2.14), a file per subject.

- `symbolic_inputs`: `ShapeEnv`, `FakeTensorMode`, `create_symbol` and guards, for the sizes of block graphs.
- `symbolic_numbers`: `SymNode.expr` and kinds of symbols, to tell numbers that do not depend on sizes.
- `fake_runs`: the Python dispatcher, for shapes, sizes and operation counts without data.
- `inductor`: `compile_fx`, for graphs that the passes rewrote.
- `choices`: `InductorChoices`, for reductions in one pass on a GPU.
- `graphs`: attributes of FX graphs and nodes, modules whose code waits for a call, and `torch.cond` as a
  node of a graph that a pass builds.
- `flex`: FlexAttention as a node of a graph, its scores and its operations in torch's count.
- `modules`: their dictionaries of parts and hooks, and the wrapper of a compiled one.
- `operators`: `TorchDispatchMode` and schemas, for what operators read and write; `_addmm_activation`.
- `tensors`: storage identities, `_version`, `_foreach_copy_` and `tree_leaves`, for caches and many copies.
- `dynamo`: its settings, errors, registry and marks of sizes, for how a function is traced.
- `dynamo_records`: its counters, metrics and compile ids, and torch's structured trace.

None of them imports Dynamo or Inductor before it is used: they take longer to import than torch itself.

Code outside this package imports from here, not from the files, and names nothing private of torch itself
(`tests/test_repository.py`).
"""

from __future__ import annotations

from torch.utils._pytree import tree_leaves

from .dynamo import (
    compile_apart,
    is_compiled,
    named_as_backend,
    one_size,
    recompile_limit,
    restarts,
    tracing_failures,
    varies,
    with_dynamic_tokens,
)
from .dynamo_records import (
    FrameCompilation,
    compilations_left,
    compile_id,
    frame_compilations,
    graph_breaks,
    trace_artifact,
    unique_graphs,
)
from .fake_runs import fake_run, symbolic_values
from .flex import FlopCounter, flex_attention, index_by_tensors
from .graphs import clone_graph, cond, graph_to_read, keep_source
from .inductor import (
    CompiledGraph,
    compile_with_dynamo_inputs,
    compile_with_inductor,
    without_dynamo_wrapper,
)
from .modules import (
    has_hooks,
    hooks_of_all_modules,
    parts_of,
    settings_of,
    shadow,
    state_of,
    uncompiled,
    uncompiled_weights,
)
from .operators import (
    DispatchMode,
    is_mutable,
    linear_gelu_rows,
    namespace_of,
    packet_of,
    parameter_names,
    registered_name,
    required_parameters,
    written_arguments,
)
from .symbolic_inputs import SymbolicInputs
from .symbolic_numbers import depends_on_sizes, hint_of
from .tensors import clone_all, copy_all, may_overlap, storage_of, storages_of, version_of, versions_of

__all__ = [
    "CompiledGraph",
    "DispatchMode",
    "FlopCounter",
    "FrameCompilation",
    "SymbolicInputs",
    "clone_all",
    "clone_graph",
    "compilations_left",
    "compile_apart",
    "compile_id",
    "compile_with_dynamo_inputs",
    "compile_with_inductor",
    "cond",
    "copy_all",
    "depends_on_sizes",
    "fake_run",
    "flex_attention",
    "frame_compilations",
    "graph_breaks",
    "graph_to_read",
    "has_hooks",
    "hint_of",
    "hooks_of_all_modules",
    "index_by_tensors",
    "is_compiled",
    "is_mutable",
    "keep_source",
    "linear_gelu_rows",
    "may_overlap",
    "named_as_backend",
    "namespace_of",
    "one_size",
    "packet_of",
    "parameter_names",
    "parts_of",
    "recompile_limit",
    "registered_name",
    "required_parameters",
    "restarts",
    "settings_of",
    "shadow",
    "state_of",
    "storage_of",
    "storages_of",
    "symbolic_values",
    "trace_artifact",
    "tracing_failures",
    "tree_leaves",
    "uncompiled",
    "uncompiled_weights",
    "unique_graphs",
    "varies",
    "version_of",
    "versions_of",
    "with_dynamic_tokens",
    "without_dynamo_wrapper",
    "written_arguments",
]
