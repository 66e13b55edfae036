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


def rewards_to_go_by_turn(rewards: Tensor, turns: Tensor, *, gamma: float) -> Tensor:
    """``[B, T]``: at each step the rewards of its turn and, discounted by ``gamma`` a turn, of all later ones.

    Args:
        rewards: ``[B, T]`` reward units, 0 where there is no step.
        turns: ``[B, T]`` the number of each step's turn, from 0 on; -1 where there is no step.
        gamma: discount per turn, [0, 1].
    """
    number = int(turns.max()) + 1
    sums = torch.zeros(len(turns), number + 1, dtype=rewards.dtype, device=rewards.device)
    sums.scatter_add_(1, turns.masked_fill(turns < 0, number), rewards)
    for turn in range(number - 2, -1, -1):
        sums[:, turn] += gamma * sums[:, turn + 1]
    return torch.where(turns >= 0, sums.gather(1, turns.clamp(min=0)), 0.0)


def turn_advantages(
    values: Tensor,
    turns: Tensor,
    states: Tensor,
    group_size: int,
    *,
    leave_one_out: bool = False,
    normalize_std: bool = False,
    epsilon: float = 1e-4,
) -> Tensor:
    """A turn's value relative to those of the group's turns that began in the same state.

    With ``states`` the turns' numbers, turns of the same number are compared. With the environment's own states it is
    the part of a step in GiGPO (Feng et al. 2025, arXiv:2505.10978, eqs. 6 to 8).

    Args:
        values: ``[B, T]`` reward units, the same at all steps of a turn; ``rewards_to_go_by_turn``, for instance.
        turns: ``[B, T]`` the number of each step's turn; -1 where there is no step.
        states: ``[B, T]`` integers that name the state in which a step's turn began.
        group_size: rows that are compared.
        leave_one_out: subtract the mean of the others only (see ``leave_one_out_advantages``).
        normalize_std: divide by the standard deviation (see ``group_advantages``).
        epsilon: added to the standard deviation, reward units.

    Returns:
        ``[B, T]``; 0 for a turn without another one like it, and where there is no step.
    """
    _groups(values[:, 0], group_size)
    real = turns >= 0
    group = (torch.arange(len(turns), device=turns.device) // group_size)[:, None].expand_as(turns)
    before = torch.nn.functional.pad(turns.cummax(1).values, (1, 0), value=-1)[:, :-1]
    first = real & (turns != before)
    alike = torch.stack([group[real], states[real]], dim=1).unique(dim=0, return_inverse=True)[1]
    begins, found = first[real], values[real]
    number = int(alike.max()) + 1
    count = torch.bincount(alike[begins], minlength=number).to(found.dtype)
    mean = torch.bincount(alike[begins], weights=found[begins], minlength=number).to(found.dtype) / count.clamp(min=1)
    centered = found - mean[alike]
    squares = torch.bincount(alike[begins], weights=centered[begins].square(), minlength=number).to(found.dtype)
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    # The mean of equal numbers has a rounding error, which a small deviation would amplify.
    rounding = 8.0 * torch.finfo(found.dtype).eps * mean.abs()
    centered = torch.where((deviation > rounding)[alike], centered, 0.0)
    if leave_one_out:
        centered = centered * (count / (count - 1).clamp(min=1))[alike]
    if normalize_std:
        centered = centered / (deviation + epsilon)[alike]
    return torch.zeros_like(values).masked_scatter(real, centered)


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
