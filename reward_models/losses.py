"""The Bradley–Terry loss and the accuracy on pairs: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    centring_coef: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of the preferences, in nats per unit of weight, plus an optional pull to zero.

        L = sum_i w_i ( -log sigmoid(c_i - r_i - m_i) + centring_coef (c_i + r_i)^2 ) / sum_i w_i

    A constant added to both rewards of a pair does not change the first term; the second fixes the origin.
    Two entries with a pair's order swapped and weights p and 1 - p give the loss of a soft preference p.

    Source: Bradley & Terry 1952; Christiano et al. 2017, eq. 1 (arXiv:1706.03741); margin: Touvron et al. 2023, eq. 2
    (arXiv:2307.09288); centring: Eisenstein et al. 2023, sec. 3.1 (arXiv:2312.09244).

    Args:
        chosen: ``[M]`` rewards of the preferred texts; carries gradient.
        rejected: ``[M]`` rewards of the others; carries gradient.
        margin: ``[M]`` required lead of the preferred one, reward units. Default 0.
        weights: ``[M]`` weight of each pair, >= 0. Default 1.
        mask: ``[M]`` True on pairs that count; other values, even NaN, have no effect.
        centring_coef: >= 0.

    Raises:
        ValueError: shapes differ, or no pair has weight.
    """
    _check_shapes(chosen, rejected=rejected, margin=margin, weights=weights, mask=mask)
    if mask is not None:
        chosen, rejected = chosen[mask], rejected[mask]
        margin = None if margin is None else margin[mask]
        weights = None if weights is None else weights[mask]
    lead = chosen - rejected if margin is None else chosen - rejected - margin
    losses = -logsigmoid(lead)
    if centring_coef:
        losses = losses + centring_coef * (chosen + rejected).square()
    return _weighted_mean(losses, weights)


def pair_accuracy(
    chosen: Tensor, rejected: Tensor, *, weights: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Share of pairs, in [0, 1], whose preferred text has the higher reward; equal rewards count half.

    Args:
        chosen: ``[M]`` rewards of the preferred texts.
        rejected: ``[M]`` rewards of the others.
        weights: ``[M]`` weight of each pair, >= 0. Default 1.
        mask: ``[M]`` True on pairs that count.

    Raises:
        ValueError: shapes differ, or no pair has weight.
    """
    _check_shapes(chosen, rejected=rejected, weights=weights, mask=mask)
    if mask is not None:
        chosen, rejected = chosen[mask], rejected[mask]
        weights = None if weights is None else weights[mask]
    right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return _weighted_mean(right, weights)


def _weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    weights = torch.ones_like(values) if weights is None else weights
    total = weights.sum()
    if total <= 0:
        raise ValueError("expected a pair with weight, received none: the mask selects none, or all weights are 0")
    return (values * weights).sum() / total


def _check_shapes(chosen: Tensor, **others: Tensor | None) -> None:
    if chosen.ndim != 1:
        raise ValueError(f"chosen: expected one dimension, received shape {tuple(chosen.shape)}")
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != chosen.shape:
            raise ValueError(f"{name}: expected shape {tuple(chosen.shape)}, received {tuple(tensor.shape)}")
