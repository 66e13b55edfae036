"""Means, variances and whitening over valid steps: pure functions of values and a mask.

``mask`` is True on valid steps; None means that all steps are valid, and is faster. Masked entries may hold anything,
NaN and infinity included: they are replaced before they are used.

``values`` and ``mask`` are ``[B, T]``, means and variances 0-dimensional; all functions raise ValueError if ``mask``
selects no step, or has another shape than ``values``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduction = Callable[[Tensor, "Tensor | None"], Tensor]
"""``(values [B, T], mask [B, T] or None) -> 0-dimensional``: `masked_mean`, `sequence_mean` or `constant_mean`."""


def fill_masked(values: Tensor, mask: Tensor | None, fill: float = 0.0) -> Tensor:
    """``values``, of any shape, with ``fill`` where ``mask`` is False; the gradient is exactly 0 there."""
    return values if mask is None else torch.where(mask, values, fill)


def count_valid(values: Tensor, mask: Tensor | None) -> Tensor:
    """The number of valid steps, as a 0-dimensional tensor of the dtype of ``values``."""
    if mask is None:
        return torch.tensor(values.numel(), dtype=values.dtype, device=values.device)
    if mask.shape != values.shape:
        raise ValueError(f"mask: expected shape {tuple(values.shape)}, received {tuple(mask.shape)}")
    if not bool(mask.any()):
        raise ValueError(f"the mask of shape {tuple(mask.shape)} selects no step")
    return mask.sum().to(values.dtype)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the valid steps."""
    if mask is None:
        return values.mean()
    return fill_masked(values, mask).sum() / count_valid(values, mask)


def sequence_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over rows of each row's mean: short rows weigh as much as long ones. Empty rows are ignored.

    Source: the ``1 / |o_i|`` of GRPO (Shao et al. 2024, eq. 3, arXiv:2402.03300). A token of a short row therefore
    weighs more, which Liu et al. 2025 (arXiv:2503.20783) call the length bias.
    """
    if mask is None:
        return values.mean()
    count_valid(values, mask)
    return row_means(values, mask).sum() / mask.any(1).sum()


def row_means(values: Tensor, mask: Tensor | None) -> Tensor:
    """``[B]``, each row's mean over its valid steps; 0 for a row that has none."""
    if mask is None:
        return values.mean(1)
    return fill_masked(values, mask).sum(1) / mask.sum(1).to(values.dtype).clamp(min=1.0)


def constant_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Sum over the valid steps, divided by ``B T``: every step weighs the same. Empty rows are not in B.

    Source: Dr. GRPO (Liu et al. 2025, arXiv:2503.20783), whose gradient of the mean over rows of the sum over steps is
    unbiased; the constant only sets its scale. In a rollout of text T is the token budget.
    """
    if mask is None:
        return values.mean()
    count_valid(values, mask)
    return fill_masked(values, mask).sum() / (mask.any(1).sum() * values.shape[1])


def masked_var(values: Tensor, mask: Tensor | None, *, unbiased: bool = True) -> Tensor:
    """Variance over the valid steps, 0 for a single one; ``unbiased`` divides by n - 1 (Bessel's correction)."""
    squares = fill_masked((values - masked_mean(values, mask)).square(), mask).sum()
    return squares / (count_valid(values, mask) - float(unbiased)).clamp(min=1.0)


def whiten(values: Tensor, mask: Tensor | None, *, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Values scaled to standard deviation 1 (and mean 0) over the valid steps; 0 on the others.

    Constant values, or a single one, become 0 rather than NaN or amplified rounding errors. ``shift_mean=False`` keeps
    the (scaled) mean; ``epsilon`` is added to the standard deviation.
    """
    mean, scale = mean_and_scale(values, mask, epsilon=epsilon)
    centered = (values - mean) / scale
    return fill_masked(centered if shift_mean else centered + mean, mask)


def mean_and_scale(values: Tensor, mask: Tensor | None, *, epsilon: float = 1e-8) -> tuple[Tensor, Tensor]:
    """What `whiten` subtracts and what it divides by: the deviation, or infinity where there is none but rounding's."""
    mean = masked_mean(values, mask)
    deviation = masked_var(values, mask).sqrt()
    rounding = 8.0 * torch.finfo(values.dtype).eps * mean.abs()
    return mean, torch.where(deviation > rounding, deviation + epsilon, torch.inf)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor | None) -> Tensor:
    """``1 - Var(returns - values) / Var(returns)``: 1 for a perfect critic, 0 for one that predicts the mean, and 0 if
    the returns are constant."""
    spread = masked_var(returns, mask, unbiased=False)
    left = masked_var(fill_masked(returns - values, mask), mask, unbiased=False)
    return torch.where(spread > 0, 1.0 - left / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0.0)
