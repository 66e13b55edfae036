"""Advantages of whole texts relative to other texts, without a critic: pure functions over ``[B]`` returns.

The return of a text is the sum of its rewards, KL penalty included; the B texts are ordered in blocks of ``group_size``
that share a prompt. Advantages per token, with a critic, are in ``agents.functional.advantages``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(returns: Tensor, group_size: int, *, normalize_std: bool = True, epsilon: float = 1e-4) -> Tensor:
    """A text's return relative to its group's: ``(R_i - mean) / (std + epsilon)``.

    Source: GRPO, Shao et al. 2024, section 4.1.2 (arXiv:2402.03300). Without ``normalize_std`` it is Dr. GRPO's
    ``R_i - mean`` (Liu et al. 2025, arXiv:2503.20783): the division gives groups of small spread the
    weight of those of large spread.

    Args:
        returns: ``[B]`` reward units, groups in blocks.
        group_size: texts of one prompt.
        normalize_std: divide by the group's standard deviation (with Bessel's correction).
        epsilon: added to the standard deviation, reward units.

    Returns:
        ``[B]`` standard deviations, or reward units; 0 in a group of one and in a group of equal returns.

    Raises:
        ValueError: if the returns are not ``[B]`` in whole groups.
    """
    groups = _groups(returns, group_size)
    centered = groups - groups.mean(1, keepdim=True)
    # The mean of equal numbers has a rounding error, which a small deviation would amplify.
    centered = torch.where((groups == groups[:, :1]).all(1, keepdim=True), 0.0, centered)
    if normalize_std and group_size > 1:
        centered = centered / (groups.std(1, keepdim=True) + epsilon)
    return centered.flatten()


def leave_one_out_advantages(returns: Tensor, group_size: int) -> Tensor:
    """A text's return minus the mean return of the others in its group: a baseline independent of the text.

        A_i = R_i - 1 / (k - 1) sum_{j != i} R_j = k / (k - 1) (R_i - mean)

    Source: Kool et al. 2019; as RLOO for language models Ahmadian et al. 2024, eq. 7 (arXiv:2402.14740). Arguments,
    zeros and errors are those of ``group_advantages``; k is ``group_size``, the result ``[B]`` reward units.
    """
    scale = group_size / max(group_size - 1, 1)
    return scale * group_advantages(returns, group_size, normalize_std=False)


def flat_groups(returns: Tensor, group_size: int) -> Tensor:
    """``[B / group_size]`` True for groups whose returns ``[B]`` are all equal, which have no gradient (DAPO,
    arXiv:2503.14476)."""
    groups = _groups(returns, group_size)
    return (groups == groups[:, :1]).all(1)


def _groups(returns: Tensor, group_size: int) -> Tensor:
    """``[B / group_size, group_size]``."""
    if returns.dim() != 1 or group_size < 1 or len(returns) % group_size:
        raise ValueError(f"expected returns [B] in groups of {group_size}, received shape {tuple(returns.shape)}")
    return returns.view(-1, group_size)
