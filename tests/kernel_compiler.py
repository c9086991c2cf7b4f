"""Compiles the kernels for Hopper on a machine without a GPU, and reads the assembler's report."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {"entropy": "*fp32", "sums": "*i64", "heads_done": "*i64", "parts": "*fp32"}


def assembler_report(source: Any, **options: int) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory, warnings and assembly of a kernel for capability 9.0."""
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(kernel.asm["ptx"])
        command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", str(ptx), "-o", f"{ptx}.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = [int(number) for number in re.findall(r"(\d+) bytes spill", report)]
    return {
        "spilled": sum(spilled),
        "registers": int(re.findall(r"Used (\d+) registers", report)[0]),
        "shared": kernel.metadata.shared,
        "serialized": "serialized" in report,
        "ptx": kernel.asm["ptx"],
    }


def plain_kernel(
    dtype: str = "bf16", width: int = 128, tiles: Any = None, **constants: bool
) -> dict[str, Any]:
    """Report of `attention_kernel` with these tiles."""
    from toprovar_fx.ops.triton_attention import attention_kernel

    block_d = triton.next_power_of_2(width)
    chosen: dict[str, Any] = {
        "D": width, "BLOCK_M": tiles.queries, "BLOCK_N": tiles.keys, "BLOCK_D": block_d, "TMA": tiles.tma,
        "ENTROPY": True, "MEAN": True, "REST": False, "EXACT": dtype == "fp32", "PRECISION": "bf16x6",
        "q_d": 1, "k_d": 1, "v_d": 1, **constants,
    }  # fmt: skip
    types = {"out": f"*{dtype}", "factor": "fp32", **POINTERS}
    for name, rows in (("q", tiles.queries), ("k", tiles.keys), ("v", tiles.keys)):
        types[name] = f"tensordesc<{dtype}[1,1,{rows},{block_d}]>" if tiles.tma else f"*{dtype}"
    whole = ["q", "k", "v", "out", *(f"{x}_{axis}" for x in "qkvo" for axis in "bhn")]
    whole = [name for name in whole if not types.get(name, "").startswith("tensordesc")]
    return assembler_report(
        _source(ASTSource, attention_kernel, chosen, types, whole),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def hopper_kernel(
    dtype: str = "bf16", width: int = 128, tiles: Any = None, **constants: bool
) -> dict[str, Any]:
    """Report of `gluon_attention.hopper_kernel` with these tiles."""
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.experimental.gluon.language import NVMMASharedLayout

    from toprovar_fx.ops.gluon_attention import hopper_kernel

    chosen: dict[str, Any] = {
        "D": width, "BLOCK_N": tiles.keys, "STAGES": tiles.stages, "HOLD": tiles.hold, "TURNS": tiles.turns,
        "ENTROPY": True, "MEAN": True, "REST": False, **constants,
    }  # fmt: skip
    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    types = {"factor": "fp32", **POINTERS}
    for name, rows in (("q", 64), ("k", tiles.keys), ("v", tiles.keys), ("out", 64)):
        types[name] = f"tensordesc<{dtype}[1,1,{rows},{width}],{layout!r}>"
    return assembler_report(_source(GluonASTSource, hopper_kernel, chosen, types, []), num_warps=4)


def dealt_kernel(dtype: str = "bf16") -> dict[str, Any]:
    """Report of `gluon_dealt_attention.dealt_kernel` with the tiles that it is launched with."""
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.experimental.gluon.language import NVMMASharedLayout

    from toprovar_fx.ops.attention_launch import STAGES
    from toprovar_fx.ops.attention_plan import KEYS_PER_STEP, WIDTH
    from toprovar_fx.ops.gluon_dealt_attention import dealt_kernel

    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    rows = {"q": 64, "k": KEYS_PER_STEP, "v": KEYS_PER_STEP, "out": 64}
    types = {name: f"tensordesc<{dtype}[1,1,{many},{WIDTH}],{layout!r}>" for name, many in rows.items()}
    types |= {"factor": "fp32", "parts": "*fp32"}
    chosen = {"D": WIDTH, "BLOCK_N": KEYS_PER_STEP, "STAGES": STAGES}
    source = _source(GluonASTSource, dealt_kernel, chosen, types, [])
    return assembler_report(source, num_warps=4, launch_pdl=True)


def product_kernel(blocks: Any, whole: bool, gelu: bool, dtype: str = "bf16") -> dict[str, Any]:
    """Report of `gluon_product.product_kernel` with these blocks."""
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.experimental.gluon.language import NVMMASharedLayout

    from toprovar_fx.ops.gluon_product import product_kernel
    from toprovar_fx.ops.streamed_product import OUTPUTS, REGISTERS

    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    types = {
        "x": f"tensordesc<{dtype}[{blocks.box},{blocks.channels}],{layout!r}>",
        "w": f"tensordesc<{dtype}[{OUTPUTS},{blocks.channels}],{layout!r}>",
        "bias": f"*{dtype}",
        "out": f"*{dtype}" if whole else "*fp32",
    }
    chosen = {"OUTPUTS": OUTPUTS, "ROWS": blocks.rows, "CHANNELS": blocks.channels, "BOX": blocks.box}
    chosen |= {"BOXES": blocks.boxes, "STAGES": blocks.stages, "WHOLE": whole, "BIAS": whole, "GELU": gelu}
    source = _source(GluonASTSource, product_kernel, chosen, types, ["bias", "out"])
    return assembler_report(source, num_warps=4, maxnreg=REGISTERS, launch_pdl=True)


def rotation_kernel(width: int = 128, dtype: str = "bf16") -> dict[str, Any]:
    """Report of `rotation_kernel` with 16 heads of this width."""
    from toprovar_fx.ops import triton_rotation

    halves = ("qkv", "q_bias", "v_bias", "log_factor", "query", "keys", "values")
    types = {
        **dict.fromkeys(halves, f"*{dtype}"),
        "cos": "*fp32",
        "sin": "*fp32",
        "keep": "*i64",
        "max_log_factor": "fp32",
    }
    chosen = {"H": 16, "D": width, "HEADS": triton_rotation.heads_per_program(16, width)}
    chosen |= {"k_d": 1, "v_d": 1, "KEEP": True, "CHAINED": True}
    whole = [*halves, "cos", "sin", *(f"{x}_{axis}" for x in "kv" for axis in "rhn")]
    source = _source(ASTSource, triton_rotation.rotation_kernel, chosen, types, whole)
    return assembler_report(source, num_warps=4, launch_pdl=True)


def rotated_attention_kernel(width: int, tokens: int, dtype: str = "bf16") -> dict[str, Any]:
    """Report of `rotated_attention_kernel` with 16 heads of this width."""
    from toprovar_fx.ops import triton_rotated_attention as of

    halves = ("qkv", "q_bias", "v_bias", "log_factor", "out", "keys", "values")
    types = {**dict.fromkeys(halves, f"*{dtype}"), "cos": "*fp32", "sin": "*fp32", "keep": "*i64"}
    types |= {"max_log_factor": "fp32", "factor": "fp32"}
    chosen = {"D": width, "BLOCK_M": of.QUERIES_PER_PROGRAM, "BLOCK_N": of.KEYS_AT_ONCE, "KEEP": False}
    chosen |= {"TOKENS": of.tokens_for(tokens), "c_d": 1, "s_d": 1, "CHAINED": True}
    whole = [*halves, "cos", "sin", "heads", "c_n", "s_n", *(f"{x}_{axis}" for x in "kv" for axis in "rhn")]
    source = _source(ASTSource, of.rotated_attention_kernel, chosen, types, whole)
    return assembler_report(source, num_warps=of.WARPS)


def few_keys_kernel(width: int, tiles: Any, parts: int = 1, dtype: str = "bf16") -> dict[str, Any]:
    """Report of `few_keys_kernel` with a mask and these tiles."""
    from toprovar_fx.ops import triton_few_keys

    halves = ("q", "bias", "k", "v", "mask", "out")
    types = {**dict.fromkeys(halves, f"*{dtype}"), "factor": "fp32"}
    types["q"] = types["q"] if parts == 1 else "*fp32"
    chosen = {
        "PARTS": parts,
        "BIAS": parts > 1,
        "MASKED": True,
        "MOST": 128,
        "D": width,
        "BLOCK_M": tiles.queries,
        "BLOCK_N": tiles.keys,
    }
    chosen |= {"STAGES": tiles.stages, "group": 1, "CHAINED": True}
    whole = ["q", "bias", "k", "v", "out", "part", *(f"{x}_{axis}" for x in "qkvo" for axis in "bhn")]
    source = _source(ASTSource, triton_few_keys.few_keys_kernel, chosen, types, whole)
    return assembler_report(source, num_warps=4)


def add_norm_kernel(width: int, rows: int, parts: int, warps: int, dtype: str = "bf16") -> dict[str, Any]:
    """Report of `add_norm_kernel` with every operand that it takes."""
    from toprovar_fx.ops import triton_add_norm

    addends = [name for part in ("gate", "scale", "shift") for name in (part, f"{part}_2")]
    halves = ("sums", "bias", *addends, "residual", "out", "normed")
    types = {**dict.fromkeys(halves, f"*{dtype}"), "keep": "*i64", "eps": "fp32"}
    types["sums"] = types["sums"] if parts == 1 else "*fp32"
    chosen = {"PARTS": parts, "BIAS": True, "GATES": 2, "SCALES": 2, "SHIFTS": 2, "ONE": True, "KEEP": True}
    chosen |= {"C": width, "ROWS": rows, "BLOCK": triton.next_power_of_2(width), "CHAINED": True}
    steps = ("part", "x_r", "x_n", "h_r", "h_n", *(f"{name}_r" for name in addends))
    source = _source(ASTSource, triton_add_norm.add_norm_kernel, chosen, types, [*halves, "keep", *steps])
    return assembler_report(source, num_warps=warps)


def selection_kernels(dtype: str = "fp32", mean: bool = True) -> list[dict[str, Any]]:
    """Reports of the two kernels of `select_tokens`, with pointers and sizes as unspecialized as they are."""
    from toprovar_fx.ops import triton_select as of

    types = {"scores": f"*{dtype}", "kept": "*i8", "out": "*i64"}
    ranked = {"LOW": True, "MEAN": mean, "RANKED": of.RANKED_PER_PROGRAM, "BLOCK": of.COMPARED_AT_ONCE}
    numbered = {"BLOCK": of.NUMBERED_AT_ONCE}
    sources = (
        _source(ASTSource, of.ranks_kernel, ranked, types, []),
        _source(ASTSource, of.gather_kept_kernel, numbered, types, []),
    )
    return [assembler_report(source, num_warps=4) for source in sources]


def sigma_kernel(side: int) -> dict[str, Any]:
    """Report of `sigma_ratio_kernel` for matrices of up to this side, a power of two."""
    from toprovar_fx.ops import triton_sigma

    chosen = {"CENTRE": True, **triton_sigma.NUMBERS, "H": side, "W": side}
    types = {"matrices": "*fp32", "ratios": "*fp32"}
    source = _source(ASTSource, triton_sigma.sigma_ratio_kernel, chosen, types, ["matrices", "ratios"])
    return assembler_report(source, num_warps=4)


def _source(
    kind: Any, kernel: Any, constants: dict[str, Any], types: dict[str, str], whole: list[str]
) -> Any:
    """Types by argument; those not named are int32. `whole`: multiples of 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    return kind(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in whole},
    )
