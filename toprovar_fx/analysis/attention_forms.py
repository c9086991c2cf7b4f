"""The attention functions and operators that are known by name: their parameters, layouts and neutral values.

A node is known by the bare name of what it calls, be it a function that Dynamo keeps whole, an operator of
torch or one that a library registered. Arguments are named by the operator's schema, or by the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from .._torch_private import parameter_names
from . import flex
from .operators import operator_name
from .packed import PACKED
from .reasons import PACKED_WHY, Reason, Unsupported

# An argument whose value changes nothing of what the analysis states.
ANY = object()


@dataclass(frozen=True)
class Form:
    """An attention function.

    Attributes:
        parameters: names by position.
        heads_first: operands are [R, H, L, E], else [R, L, H, E].
        mask, dropout, scale, causal, grouped: names of these parameters, "" where there is none; `grouped`
            lets heads share keys where it is true.
        neutral: for every other parameter the value under which it has no effect, or `ANY`.
        result: position of the attended values among several results, or None for a single one.
        understood: what else a call of it must fulfil, for the table.
    """

    parameters: tuple[str, ...]
    heads_first: bool = False
    mask: str = ""
    dropout: str = ""
    scale: str = ""
    causal: str = ""
    grouped: str = ""
    neutral: Mapping[str, object] = field(default_factory=dict)
    result: int | None = None
    understood: str = ""


_FLASH = {"softcap": 0.0, "alibi_slopes": None, "deterministic": ANY, "return_attn_probs": False}
_FLASH_OPERATOR = {
    "window_size_left": -1,
    "window_size_right": -1,
    "softcap": 0.0,
    "alibi_slopes": None,
    "return_softmax": False,
}
# What packed kernels are called by once their rows are parted (passes/part_rows.py).
PARTED = "packed_self_attention"

FORMS: Mapping[str, Form] = {
    "scaled_dot_product_attention": Form(
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
        heads_first=True,
        mask="attn_mask",
        dropout="dropout_p",
        scale="scale",
        causal="is_causal",
        grouped="enable_gqa",
    ),
    "flash_attn_func": Form(
        ("q", "k", "v", "dropout_p", "softmax_scale", "causal", "window_size", *_FLASH),
        dropout="dropout_p",
        scale="softmax_scale",
        causal="causal",
        neutral={"window_size": (-1, -1), **_FLASH},
    ),
    "_flash_attn_forward": Form(
        ("q", "k", "v", "dropout_p", "softmax_scale", "causal", *_FLASH_OPERATOR),
        dropout="dropout_p",
        scale="softmax_scale",
        causal="causal",
        neutral=_FLASH_OPERATOR,
        result=0,
    ),
    "memory_efficient_attention": Form(
        ("query", "key", "value", "attn_bias", "p", "scale", "op"),
        mask="attn_bias",
        dropout="p",
        scale="scale",
        neutral={"op": ANY, "output_dtype": None},
    ),
    "flex_attention": Form(
        flex.PARAMETERS,
        heads_first=True,
        scale="scale",
        # `score_mod` and `block_mask` are read by analysis/flex.py.
        neutral=dict.fromkeys(flex.PARAMETERS, ANY),
        result=0,
        understood="no `block_mask`; what a `score_mod` may do: below",
    ),
    PARTED: Form(("q", "k", "v", "scale", "kernel"), scale="scale", neutral={"kernel": ANY}),
}

_PACKED = """
flash_attn_varlen_func flash_attn_varlen_kvpacked_func flash_attn_varlen_qkvpacked_func
_flash_attn_varlen_forward varlen_attn varlen_attn_out _varlen_attn _varlen_attn_out
"""
_VARIANTS = "flash_attn_qkvpacked_func flash_attn_kvpacked_func flash_attn_with_kvcache"
REFUSED: Mapping[str, Reason] = {
    **dict.fromkeys(_PACKED.split(), Reason.PACKED_ROWS),
    **dict.fromkeys(_VARIANTS.split(), Reason.ATTENTION_VARIANT),
}


def form_of(node: fx.Node) -> Form | None:
    """The form of an attention node, or None for any other node."""
    return FORMS.get(operator_name(node)) if node.op in ("call_function", "call_method") else None


def named_arguments(node: fx.Node, form: Form) -> dict[str, object]:
    """The arguments that a call gives, by name."""
    # The first three are queries, keys and values, whatever an operator calls them.
    names = (*form.parameters[:3], *(parameter_names(node.target) or form.parameters)[3:])
    if len(node.args) > len(names):
        raise Unsupported(Reason.ATTENTION_VARIANT, node, f"{len(node.args)} positional arguments")
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def refuse_variant(node: fx.Node, form: Form, given: Mapping[str, object]) -> None:
    """Refuse a call whose arguments ask for more than softmax(scale q k^T + mask) v."""
    if form.causal and given.get(form.causal, False) is not False:
        raise Unsupported(Reason.MASKED_ATTENTION, node, "causal")
    if form.dropout and given.get(form.dropout, 0.0) != 0:
        raise Unsupported(Reason.RANDOM, node, f"{form.dropout}={given[form.dropout]}")
    roles = {*form.parameters[:3], form.mask, form.dropout, form.scale, form.causal, form.grouped}
    for name, value in given.items():
        if name in roles:
            continue
        neutral = form.neutral.get(name, None)
        plain = tuple(value) if isinstance(value, list) else value
        if neutral is not ANY and not (plain is neutral or plain == neutral):
            raise Unsupported(Reason.ATTENTION_VARIANT, node, f"{name}={value}")


def refused(graph: fx.Graph) -> Unsupported | None:
    """The verdict on the first attention node whose form is refused whatever its arguments, or None."""
    for node in graph.nodes:
        if node.op == "call_function" and operator_name(node) in REFUSED:
            return Unsupported(
                REFUSED[operator_name(node)], node, node.meta.get(PACKED_WHY, operator_name(node))
            )
    return None


def attention_table() -> str:
    """Return the Markdown table of docs/analysis.md: what is known by name, and what happens to it."""
    rows = ["| Function or operator | Layout | Understood where |", "|---|---|---|"]
    for name, form in FORMS.items():
        if name == PARTED:
            continue
        asked = [f"`{form.causal}=False`"] if form.causal else []
        asked += [f"`{form.dropout}=0`"] if form.dropout else []
        asked += [f"`{key}={value}`" for key, value in form.neutral.items() if value is not ANY]
        asked += [form.understood] if form.understood else []
        layout = "[R, H, L, E]" if form.heads_first else "[R, L, H, E]"
        rows.append(f"| `{name}` | {layout} | {', '.join(asked)} |")
    parted = "queries merged from [R, L, ...] whose lengths are computed as 0, L, 2L, ...; else `PACKED_ROWS`"
    rows += [f"| `{name}` | [R L, H, E] | {parted} |" for name in PACKED]
    never = {name: reason for name, reason in REFUSED.items() if name not in PACKED}
    rows += [f"| `{name}` | - | never: `{reason.name}` |" for name, reason in never.items()]
    return "\n".join(rows) + "\n"
