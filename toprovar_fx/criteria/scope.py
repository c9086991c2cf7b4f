"""Layer scope R: 0 for layers that see the image as a whole, 1 for layers that see detail (eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

# 2**SQUARINGS is the power of the Gram matrix that the start vector is multiplied with.
SQUARINGS = 10
# So many in a row need no scaling: of trace 1, the largest eigenvalue is at least 1 / n, its 8th power a
# float32 for every n up to 10^4. Each scaling is two kernels of a device, in a chain of small ones.
UNSCALED = 3
# A second singular value below this share of the first is rounding of the fp32 deflation.
RANK_ONE = 1e-6
TINY = torch.finfo(torch.float32).tiny


def sigma_ratio(matrix: Tensor, centre: bool = False) -> Tensor:
    """Return ``sigma1 / sigma2``, the ratio of the two largest singular values, without an SVD.

    The Gram matrix of the shorter side, squared ten times, is its power m = 1024; its column of largest
    diagonal gives the first singular vector. Removing that from the matrix and repeating gives the second.
    Nothing is random, and there is no library call that synchronises with the device.

    Error, whatever the spectrum. Let ``n`` be the shorter side, ``l1 >= l2 >= ...`` the eigenvalues of
    the Gram matrix G, and ``c_i`` the coefficients of the chosen column's basis vector in its
    eigenvectors ``u_i``. The first vector is ``x ~ sum_i l_i^m c_i u_i``. The column has the largest
    diagonal of G^m, so ``sum_i l_i^m c_i^2 >= trace(G^m) / n >= l1^m / n``.

    1. By Jensen, twice, ``x'Gx >= (sum_i l_i^m c_i^2)^(1/m) >= l1 n^(-1/m)``. So sigma1, and likewise the
       largest singular value of what is left after the removal, is underestimated by a factor of at least
       ``n^(-1/(2m))`` and never overestimated.
    2. What is left, ``(I - xx') A``, has a largest singular value of at least sigma2 (a matrix of rank 1
       cannot take more away) and at most ``sqrt(l2 + (l1 - x'Gx))`` (Ky Fan, for x and the vector of that
       value).
    3. If ``l2 >= l1 (2n)^(-1/m)``, step 1 bounds the excess: ``(l1 - x'Gx) / l2 <= (2n)^(1/m) log(n) / m``.
       If l2 is smaller, ``c_1^2 >= 1 / (2n)``, so it is at most ``2n (l2/l1)^(2m-1) (1 - l2/l1)``, which is
       less.

    So the ratio is too large by at most ``log(n) / (2m)`` relative, and too small by at most ``log(n) /
    m``, to first order; ``3 log(n) / (2m)`` bounds both for every n up to 10^6 (0.6% at n = 64). The
    rounding of the fp32 removal adds about ``1e-6 sigma1 / sigma2``.

    Args:
        matrix: ``[..., h, w]``, an entropy map or the tokens ``[..., L, C]``.
        centre: Subtract the mean of all entries first.

    Returns:
        The ratio, float32, ``[...]``, at least 1; +inf where sigma2 is 0 (a matrix of rank 1 or 0).
    """
    rest = matrix.float()
    largest = entries = _largest(rest)
    if centre:
        rest = rest - rest.mean((-2, -1), keepdim=True)
        largest = _largest(rest)
    if rest.shape[-2] > rest.shape[-1]:
        rest = rest.transpose(-2, -1)
    # Unit magnitude: Gram entries neither overflow nor underflow. A constant map, centred, is only rounding.
    flat = (largest > entries * RANK_ONE).logical_not()
    rest = (rest / largest.clamp_min(TINY)).masked_fill(flat, 0.0)
    left, right = _leading(rest)
    _, second_right = _leading(rest - left @ right)
    first, second = (torch.linalg.vector_norm(each, dim=(-2, -1)) for each in (right, second_right))
    ratio = (first / second).clamp_min(1)
    return ratio.masked_fill(second <= RANK_ONE * first, torch.inf)


def _largest(matrix: Tensor) -> Tensor:
    """Return the largest magnitude of the entries, ``[..., 1, 1]``."""
    return torch.linalg.vector_norm(matrix, torch.inf, dim=(-2, -1), keepdim=True)


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first left singular vector ``[..., h, 1]`` of ``[..., h, w]``, and its product with it."""
    # A zero matrix has no leading vector; so small a sum leaves others as they are, and gives it one.
    power = matrix @ matrix.transpose(-2, -1) + TINY
    for squared in range(SQUARINGS):
        if squared % UNSCALED == 0:
            power = power / power.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        power = power @ power
    best = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    column = power.gather(-1, best.expand(*power.shape[:-1], 1))
    left = column / torch.linalg.vector_norm(column, dim=-2, keepdim=True)
    return left, left.transpose(-2, -1) @ matrix


def layer_detail(ratio: Tensor, beta: float) -> Tensor:
    """Return ``R = exp(-beta (sigma1 / sigma2 - 1))`` (eq. 4).

    Args:
        ratio: ``sigma1 / sigma2``, ``[...]``, at least 1; +inf gives R = 0 for every beta.
        beta: Steepness, at least 0.

    Returns:
        R in [0, 1], float32, ``[...]``: 0 for global layers, 1 for detail layers.
    """
    ratio = ratio.float()
    detail = torch.exp(-beta * (ratio - 1).clamp_min(0))
    return torch.where(ratio.isinf(), 0.0, detail)
