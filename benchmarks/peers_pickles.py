"""Reads scikit-learn models that joblib wrote, without either, and without running what a pickle asks for.

Only the classes below are made, as holders of their attributes; any other name in the file is refused.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


class Holder:
    """Stands in for a class of scikit-learn: its attributes and what they predict."""

    mean_: np.ndarray
    scale_: np.ndarray
    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray

    def transform(self, rows: Any) -> Any:
        """As `StandardScaler.transform`."""
        return (np.asarray(rows, np.float64) - self.mean_) / self.scale_

    def predict(self, rows: Any) -> Any:
        """As `LogisticRegression.predict` with more than two classes."""
        return self.classes_[np.argmax(np.asarray(rows) @ self.coef_.T + self.intercept_, axis=1)]


class _Array:
    """Stands in for joblib's wrapper, which the array's bytes follow in the file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, file: io.BytesIO) -> np.ndarray:
        if getattr(self, "numpy_array_alignment_bytes", None) is not None:
            file.read(int.from_bytes(file.read(1), "little"))
        count = math.prod(self.shape)
        return np.frombuffer(file.read(count * self.dtype.itemsize), self.dtype, count).reshape(self.shape)


_KNOWN = {
    ("sklearn.linear_model._logistic", "LogisticRegression"): Holder,
    ("sklearn.preprocessing._data", "StandardScaler"): Holder,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Array,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "scalar"): lambda dtype, data: np.frombuffer(data, dtype)[0],
}


_Unpickler: Any = vars(pickle)["_Unpickler"]  # the one in Python: its steps can be overridden


class _Reader(_Unpickler):
    dispatch: ClassVar = dict(_Unpickler.dispatch)

    def __init__(self, content: bytes) -> None:
        self.bytes = io.BytesIO(content)
        super().__init__(self.bytes)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is not expected there")
        return _KNOWN[module, name]

    def load_build(self) -> None:
        super().load_build()
        if isinstance(self.stack[-1], _Array):
            self.stack[-1] = self.stack[-1].read(self.bytes)

    dispatch[pickle.BUILD[0]] = load_build


def read(path: Path) -> Holder:
    """The model of a file.

    Raises:
        pickle.UnpicklingError: the file asks for a class that is not known here.
    """
    found = _Reader(path.read_bytes()).load()
    assert isinstance(found, Holder)
    return found
