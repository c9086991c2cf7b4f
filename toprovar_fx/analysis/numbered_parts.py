"""Parts of an input that are chosen by constant numbers, as each layer's of what was stacked for all.

Inside the blocks their numbers would make different blocks of equal ones.
"""

from __future__ import annotations

from torch import fx

from .operators import operator_name
from .shapes import is_tensor
from .writes import is_written

_ALONG = frozenset({"select", "narrow"})


def is_numbered_part(node: fx.Node) -> bool:
    """Whether a node is `x[3]`, `x[3, 0]`, `x.select(0, 3)` or a part of such a part; nobody writes to x."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not is_tensor(source) or not _has_numbers(node):
        return False
    return (source.op == "placeholder" or is_numbered_part(source)) and not is_written(node)


def _has_numbers(node: fx.Node) -> bool:
    if node.kwargs:
        return False
    name, numbers = operator_name(node), node.args[1:]
    if name == "getitem":
        numbers = numbers[0] if isinstance(numbers[0], tuple) else numbers
    elif name not in _ALONG:
        return False
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
