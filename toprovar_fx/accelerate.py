"""`accelerate(model)`: upstream models, compiled and pruned through their own generation method."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType

from torch import nn

from .adapters import FAMILIES, Adapter
from .adapters.base import GENERATE, Replacement
from .adapters.overrides import Overrides
from .adapters.structure import missing
from .errors import AdapterError
from .options import Options
from .runtime.report import GenerationReport

_HANDLE = "_toprovar_accelerated"
_LOCK = threading.Lock()


class Accelerated:
    """Handle of an accelerated model; as a context manager it restores the model at the end.

    Attributes:
        model: the model, the same object as before.
        options: the backend's settings.
        adapter: what knows the model's family.
    """

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self.model, self.adapter, self.options = model, adapter, adapter.options
        self._overrides = Overrides()
        adapter.install(self._overrides)
        self._overrides.attribute(model, _HANDLE, self)

    @property
    def family(self) -> str:
        """The family that the model was recognised as."""
        return self.adapter.family

    @property
    def replacements(self) -> tuple[Replacement, ...]:
        """What was replaced on the model, and why."""
        return self.adapter.replacements

    @property
    def report(self) -> GenerationReport | None:
        """The report of the last generation that ended; None before, or if nothing of it was compiled."""
        return self.adapter.report

    def restore(self) -> None:
        """Put the model back as it was, the very same objects; does nothing the second time.

        Raises:
            AdapterError: another tool replaced one of the same attributes since; nothing is changed then.
        """
        with _LOCK:
            self._overrides.undo()

    def __enter__(self) -> Accelerated:
        """Return the handle."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the model."""
        self.restore()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copies of the model are not accelerated, so they have no handle."""
        return type(None), ()


def accelerate(model: nn.Module, options: Mapping[str, object] | Options | None = None) -> Accelerated:
    """Make a model's own generation method run compiled and pruned.

    The model is recognised by its structure, not by its class or module: upstream VAR and Infinity, and what
    is built like them. Their files are not touched; what is replaced on the instance is in
    `Accelerated.replacements`.

    Example:
        handle = toprovar_fx.accelerate(var, {"preset": "fast"})
        images = var.autoregressive_infer_cfg(B=1, label_B=22, cfg=4)
        print(handle.report.table())
        handle.restore()

    Args:
        model: in evaluation mode by the time it generates.
        options: as for the backend.

    Returns:
        The handle: reports, and the undo.

    Raises:
        AdapterError: no family fits; the message names the nearest one and what the model lacks of it. Or the
            model is accelerated already.
        OptionError: an invalid option.
    """
    settings = Options.parse(options)
    with _LOCK:
        if isinstance(model, nn.Module) and vars(model).get(_HANDLE) is not None:
            raise AdapterError(
                f"{type(model).__name__} is accelerated already: expected restore() on its handle before "
                "accelerate() with other options"
            )
        return Accelerated(model, _family_of(model)(model, settings))


def restore(model: nn.Module) -> None:
    """Undo `accelerate(model)`; the same as `restore()` on its handle.

    Raises:
        AdapterError: the model is not accelerated.
    """
    handle = getattr(model, _HANDLE, None)
    if not isinstance(handle, Accelerated):
        raise AdapterError(
            f"{type(model).__name__} is not accelerated: expected a model given to accelerate()"
        )
    handle.restore()


def _family_of(model: object) -> type[Adapter]:
    if not isinstance(model, nn.Module):
        raise AdapterError(f"{type(model).__name__}: expected a torch.nn.Module, the model that generates")
    lacking = {family: missing(family.requirements, model) for family in FAMILIES}
    for family, absent in lacking.items():
        if not absent:
            return family
    nearest = min(FAMILIES, key=lambda family: len(lacking[family]) / len(family.requirements))
    name = type(model).__name__
    if len(lacking[nearest]) == len(nearest.requirements) or not hasattr(model, GENERATE):
        known = " and ".join(family.family for family in FAMILIES)
        raise AdapterError(
            f"{name} is no model that accelerate() knows: expected one built like {known}, with a "
            f"method {GENERATE}; for another model use torch.compile(its scale step, backend='toprovar')"
        )
    raise AdapterError(
        f"{name} resembles {nearest.family} but lacks: {'; '.join(lacking[nearest])}; nearest supported "
        f"model: {nearest.family}"
    )
