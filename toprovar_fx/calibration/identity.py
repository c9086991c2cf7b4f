"""The identity of a model's weights, as a scale step sees them: its parameters, whatever they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

# Values that are read of every parameter, evenly spread: training changes them all.
_SAMPLES = 64


def model_identity(parameters: Iterable[Tensor], layers: int) -> str:
    """Return a SHA-256 of shapes and of up to 64 values of every parameter.

    Values are rounded to bfloat16 first, so that a model has one identity in float32 and in bfloat16. Order
    and names of the parameters do not count, because Dynamo chooses them. One copy from the device.

    Args:
        parameters: floating-point or integer tensors of one model.
        layers: number of layers.
    """
    found = [parameter.detach() for parameter in parameters]
    samples = [_sampled(parameter) for parameter in found]
    values = torch.cat(samples).cpu().view(torch.int16).numpy() if samples else None
    digests = []
    start = 0
    for parameter, sample in zip(found, samples, strict=True):
        assert values is not None
        digest = hashlib.sha256(str(tuple(parameter.shape)).encode())
        digest.update(values[start : start + len(sample)].tobytes())
        start += len(sample)
        digests.append(digest.digest())
    whole = hashlib.sha256(f"{layers} layers".encode())
    for digest_bytes in sorted(digests):
        whole.update(digest_bytes)
    return whole.hexdigest()


def _sampled(parameter: Tensor) -> Tensor:
    """Up to 64 of a parameter's values, bfloat16, one-dimensional."""
    flat = parameter.reshape(-1)
    if len(flat) > _SAMPLES:
        at = torch.linspace(0, len(flat) - 1, _SAMPLES, dtype=torch.float64, device=flat.device)
        flat = flat[at.long()]
    return flat.to(torch.bfloat16)
