"""Advantage estimation as pure functions over ``[B, T]``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from agents.functional.masked import fill_masked


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    *,
    gamma: float | Tensor,
    lam: float | Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Generalized advantage estimation that distinguishes termination from truncation.

        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        A_t     = delta_t + gamma lam (1 - ended_t) A_{t+1}

    ``s'_t`` is the state after the step, before any reset: at a time limit the sum bootstraps from the value of the
    final observation and stops there.

    Source: Schulman et al. 2016, eq. 16 (arXiv:1506.02438); time limits: Pardo et al. 2018 (arXiv:1712.00378).

    Args:
        rewards: ``[B, T]`` reward units.
        values: ``[B, T]`` V(s_t).
        next_values: ``[B, T]`` V(s'_t); ignored where terminated.
        terminated: ``[B, T]`` bool, the task ended here.
        ended: ``[B, T]`` bool, the sum stops after this step: terminated, truncated, or the end of the row.
        gamma: discount per step, [0, 1]; or ``[B, T]``, that of what follows each step.
        lam: weight of later TD errors, [0, 1]: 0 is one-step TD, 1 is Monte Carlo; or ``[B, T]`` like ``gamma``.
        mask: ``[B, T]`` bool, True on valid steps; None: all are valid. Other steps are skipped: they have advantage 0,
            may hold anything, and the successor of a valid step is the next valid step.

    Returns:
        ``[B, T]`` reward units; ``advantages + values`` are the critic's targets.

    Raises:
        ValueError: if the shapes differ or are not ``[B, T]``.
    """
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, ended, mask) if x is not None}
    if len(shapes) != 1 or rewards.dim() != 2:
        raise ValueError(f"expected tensors of one shape [B, T], received {sorted(shapes)}")
    with torch.no_grad():
        delta = fill_masked(rewards + gamma * next_values.masked_fill(terminated, 0.0) - values, mask)
        should_continue = ~ended & ~terminated
        # No time passes on masked steps: the advantage of the next valid step is carried over undiscounted.
        decay = fill_masked((gamma * lam) * should_continue.to(delta.dtype), mask, 1.0)
        # Time first, so that each iteration reads and writes contiguous memory.
        delta, decay = delta.t().contiguous(), decay.t().contiguous()
        advantages = torch.empty_like(delta)
        following = torch.zeros_like(delta[0])
        for t in range(delta.shape[0] - 1, -1, -1):
            following = torch.addcmul(delta[t], decay[t], following, out=advantages[t])
        return fill_masked(advantages.t().contiguous(), mask)


def all_action_advantages(
    advantages: Tensor, values: Tensor, taken: Tensor, comparable: Tensor, others: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Spread the first step of ``advantages`` over K other actions of each state, whose values a critic tells.

        b_k    = mean of the known q_j, j != k, or V(s) if there are none;  b = mean of the b_k
        A_k    = (q_k - b_k) / (K + 1)                          for each other action that is known
        A_t   := A_t + V(s_t) - b - K / (K + 1) (q_t - b)        for the action that was taken

    with the one-step value q = r + gamma V(s'). The others are drawn like the action that was taken, so that all K + 1
    together have the expected gradient of one, with less variance; A_t keeps what came later, which one step of a
    critic does not know. Where the taken action cannot be compared (it ended the episode) only the baseline changes.

    Sources: all actions of a state, Ciosek & Whiteson 2018 (arXiv:1706.05374), Allen et al. 2017 (arXiv:1709.00503);
    the mean of the others as the baseline of each, Kool et al. 2019.

    Args:
        advantages: ``[B, T]`` reward units, of GAE with ``values``.
        values: ``[B, T]`` V(s_t).
        taken: ``[B, T]`` q of the action that was taken.
        comparable: ``[B, T]`` bool, whether that is a critic's value; elsewhere ``taken`` is ignored.
        others: ``[B, T, K]`` q of the others.
        known: ``[B, T, K]`` bool, the others that end nothing; elsewhere ``others`` is ignored.

    Returns:
        ``[B, T]`` and ``[B, T, K]``, reward units.
    """
    count = others.shape[-1]
    others = others.masked_fill(~known, 0.0)
    number = known.sum(-1, keepdim=True) - known.long()
    without = (others.sum(-1, keepdim=True) - others) / number.clamp(min=1)
    without = torch.where(number > 0, without, values[..., None])
    baseline = without.mean(-1)
    shared = (taken - baseline).masked_fill(~comparable, 0.0) * (count / (count + 1))
    return advantages + values - baseline - shared, (others - without).masked_fill(~known, 0.0) / (count + 1)


def ends_of_turns(turns: Tensor) -> Tensor:
    """``[B, T]`` bool: the last step of each turn, of ``turns [B, T]``, -1 where there is no step."""
    following = values_of_next_steps(turns + 1, turns >= 0) - 1
    return (turns >= 0) & (following != turns)


def values_of_next_steps(values: Tensor, mask: Tensor) -> Tensor:
    """V at the next valid step of each row: ``[B, T]``, 0 after the last; of ``values`` V(s_t) and a bool ``mask``."""
    width = values.shape[1]
    columns = torch.where(mask, torch.arange(width, device=mask.device), width)
    at_or_after = pad(columns, (0, 1), value=width).flip(1).cummin(1).values.flip(1)
    return pad(values, (0, 1)).gather(1, at_or_after[:, 1:])
