"""Modules: a view of one with other parts, and what is inside a wrapper of `torch.compile`."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

# What every module has, but for whether it trains.
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = frozenset({bool, int, float, str})


def shadow(block: nn.Module, **parts: nn.Module) -> nn.Module:
    """A second view of a block: the same parameters and submodules, but for those named in `parts`.

    Hooks on the block itself do not run with it; those on its submodules do.
    """
    view = copy.copy(block)
    attributes = {name: value for name, value in vars(block).items() if name != "forward"}
    attributes["_modules"] = {**block._modules, **parts}
    for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
        attributes[name] = OrderedDict()
    vars(view).clear()
    vars(view).update(attributes)
    return view


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module runs hooks of its own around its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def hooks_of_all_modules() -> bool:
    """Whether calling any module runs hooks that are registered for all of them."""
    return bool(nn.modules.module._has_any_global_hook())


def parts_of(module: nn.Module) -> list[nn.Module]:
    """A module and all inside it; one that is in two places twice. `modules()` takes longer."""
    found = [module]
    for each in found:
        found += [part for part in each._modules.values() if part is not None]
    return found


def state_of(parts: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of modules, less those of modules inside."""
    held = (value for part in parts for each in (part._parameters, part._buffers) for value in each.values())
    return [value for value in held if value is not None]


def settings_of(parts: Iterable[nn.Module]) -> list[tuple[str, object]]:
    """What modules were told in numbers, words and tuples, such as paddings and epsilons."""
    own = [(name, each[name]) for each in map(vars, parts) for name in each if name not in _INTERNAL]
    return [
        (name, value)
        for name, value in own
        if type(value) in _PLAIN or (type(value) is tuple and _PLAIN.issuperset(map(type, value)))
    ]


def uncompiled(model: Any) -> Any:
    """What `torch.compile` wrapped; anything else is returned as it is."""
    return getattr(model, "_orig_mod", model)


def uncompiled_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a module by the names that it has when neither it nor a part of it is compiled."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
