"""The Bradley–Terry loss, a pure function of tensors."""

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
    centering_coef: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of the preferences, in nats per unit of weight, plus an optional pull to zero.

        L = sum_i w_i ( -log sigmoid(c_i - r_i - m_i) + centering_coef (c_i + r_i)^2 ) / sum_i w_i

    A constant added to both rewards of a pair does not change the first term; the second fixes the origin.
    Two entries with a pair's order swapped and weights p and 1 - p give the loss of a soft preference p.

    Source: Bradley & Terry 1952; Christiano et al. 2017, eq. 1 (arXiv:1706.03741); margin: Touvron et al. 2023, eq. 2
    (arXiv:2307.09288); centering: Eisenstein et al. 2023, sec. 3.1 (arXiv:2312.09244).

    Args:
        chosen: ``[M]`` rewards of the preferred texts; carries gradient.
        rejected: ``[M]`` rewards of the others; carries gradient.
        margin: ``[M]`` required lead of the preferred one, reward units. Default 0.
        weights: ``[M]`` weight of each pair, >= 0. Default 1.
        centering_coef: >= 0.

    Raises:
        ValueError: shapes differ, or no pair has weight.
    """
    if chosen.ndim != 1:
        raise ValueError(f"chosen: expected one dimension, received shape {tuple(chosen.shape)}")
    for name, tensor in {"rejected": rejected, "margin": margin, "weights": weights}.items():
        if tensor is not None and tensor.shape != chosen.shape:
            raise ValueError(f"{name}: expected shape {tuple(chosen.shape)}, received {tuple(tensor.shape)}")
    lead = chosen - rejected if margin is None else chosen - rejected - margin
    losses = -logsigmoid(lead)
    if centering_coef:
        losses = losses + centering_coef * (chosen + rejected).square()
    weights = torch.ones_like(losses) if weights is None else weights
    total = weights.sum()
    if total <= 0:
        raise ValueError("expected a pair with weight, received none: there is none, or all weights are 0")
    return (losses * weights).sum() / total
