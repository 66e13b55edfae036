"""Means, variances and whitening over the steps that count; not a place for anything that knows about policies.

``mask`` is True where a step counts. A mask of ``None`` says that every step counts, and saves the work of asking.
Masked entries may hold anything, NaN and infinity included: they are replaced before they are used.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep(values: Tensor, mask: Tensor | None, fill: float = 0.0) -> Tensor:
    """``values`` with ``fill`` where ``mask`` is False; its gradient is exactly 0 there.

    Args:
        values: any shape.
        mask: bool of the same shape, or None.
        fill: what stands in for masked entries.
    """
    return values if mask is None else torch.where(mask, values, fill)


def count(values: Tensor, mask: Tensor | None) -> Tensor:
    """The number of steps that count, as a 0-dimensional tensor of ``values``' dtype.

    Raises:
        ValueError: if ``mask`` has another shape than ``values``, or selects no step.
    """
    if mask is None:
        return torch.tensor(values.numel(), dtype=values.dtype, device=values.device)
    if mask.shape != values.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the values have {tuple(values.shape)}")
    if not bool(mask.any()):
        raise ValueError(f"the mask of shape {tuple(mask.shape)} selects no step")
    return mask.sum().to(values.dtype)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the steps that count.

    Args:
        values: ``[B, T]``.
        mask: ``[B, T]`` bool, True on steps that count; None counts all.

    Returns:
        0-dimensional.

    Raises:
        ValueError: if ``mask`` selects no step, or its shape differs.
    """
    if mask is None:
        return values.mean()
    return keep(values, mask).sum() / count(values, mask)


def masked_var(values: Tensor, mask: Tensor | None, *, unbiased: bool = True) -> Tensor:
    """Variance over the steps that count; 0 where only one counts.

    Args:
        values: ``[B, T]``.
        mask: ``[B, T]`` bool; None counts all.
        unbiased: divide by n - 1 instead of n (Bessel's correction).

    Raises:
        ValueError: if ``mask`` selects no step, or its shape differs.
    """
    squares = keep((values - masked_mean(values, mask)).square(), mask).sum()
    return squares / (count(values, mask) - float(unbiased)).clamp(min=1.0)


def whiten(values: Tensor, mask: Tensor | None, *, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Values scaled to standard deviation 1 (and mean 0) over the steps that count; 0 on the others.

    Constant values, or a single one, become 0 rather than NaN.

    Args:
        values: ``[B, T]``.
        mask: ``[B, T]`` bool; None counts all.
        shift_mean: subtract the mean; False keeps it, in the new scale.
        epsilon: added to the standard deviation.

    Returns:
        ``[B, T]``, in standard deviations.

    Raises:
        ValueError: if ``mask`` selects no step, or its shape differs.
    """
    mean = masked_mean(values, mask)
    deviation = masked_var(values, mask).sqrt() + epsilon
    centred = (values - mean) / deviation
    return keep(centred if shift_mean else centred + mean, mask)
