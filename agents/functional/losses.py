"""The losses of PPO as pure functions, ``[B, T]`` in and one number out; lower is better in all of them.

Coefficients (``value_coef``, ``entropy_coef``) and the optimizer loop are in ``agents.update``. ``average`` reduces the
terms of all steps to one number; see ``agents.functional.masked``.

In all losses ``logprobs``, ``entropy`` and ``values`` ``[B, T]`` carry gradient, and ``mask``, ``average`` and the
errors are those of ``clipped_policy_loss``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.masked import Reduction, fill_masked, masked_mean, row_means

LARGEST_LOG_RATIO = 80.0
"""Nats at which the log-ratio is clamped: exp overflows float32 at 88.7, and infinity times a gradient of 0 is NaN."""


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    *,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    sequence_ratio: bool = False,
    average: Reduction = masked_mean,
) -> Tensor:
    """PPO's clipped surrogate, negated so that lower is better.

        L = -E_t[ min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t) ],   r_t = pi(a_t|s_t) / pi_old(a_t|s_t)

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347).

    With ``dual_clip`` c the term of a step with A < 0 is at least ``c A``: a very large ratio, which the minimum does
    not bound, has no gradient. Source: Ye et al. 2020, eq. 5 (arXiv:1912.09729).

    With ``sequence_ratio`` it is GSPO's: the steps of a row share the value of one ratio, the geometric mean of theirs,

        s = (pi(y|x) / pi_old(y|x))^(1/|y|),   r_t = sg(s) pi(a_t|s_t) / sg(pi(a_t|s_t)),   |y| the row's valid steps

    so that whole rows are clipped, and each step has its own advantage. Where a row's advantages are equal, value and
    gradient are those of s itself, under every ``average``. Source: Zheng et al. 2025, eqs. 5, 7, 13 and 14
    (arXiv:2507.18071); their average is ``sequence_mean``.

    Args:
        logprobs: ``[B, T]`` nats; carries gradient.
        old_logprobs: ``[B, T]`` nats, of the policy that acted.
        advantages: ``[B, T]`` reward units; constants.
        mask: ``[B, T]`` True on valid steps; None: all are valid.
        clip: eps, half-width of the trust interval, >= 0.
        clip_high: upper eps, if it differs from the lower one (Yu et al. 2025, "clip-higher", arXiv:2503.14476).
        dual_clip: c, > 1 + clip_high; None: no second clip.
        sequence_ratio: GSPO's ratio instead of each step's own.
        average: over the valid steps.

    Raises:
        ValueError: if ``mask`` selects no step.
    """
    log_ratio = fill_masked(logprobs - old_logprobs, mask)
    if sequence_ratio:
        log_ratio = row_means(log_ratio, mask).detach()[:, None] + (log_ratio - log_ratio.detach())
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    advantages = fill_masked(advantages, mask)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    return -average(gain, mask)


def policy_gradient_loss(
    logprobs: Tensor, advantages: Tensor, mask: Tensor | None, *, average: Reduction = masked_mean
) -> Tensor:
    """The plain policy gradient, ``-E_t[ log pi(a_t|s_t) A_t ]``; only its gradient is meaningful, not its value.

    Source: Williams 1992 (REINFORCE). It holds for actions of the current policy only: one optimizer step per batch.
    """
    return -average(fill_masked(logprobs, mask) * fill_masked(advantages, mask), mask)


def clipped_weight_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    *,
    clip: float,
    clip_high: float | None = None,
    average: Reduction = masked_mean,
) -> Tensor:
    """CISPO: the plain policy gradient, weighted by a clipped importance ratio that carries no gradient.

        L = -E_t[ sg(clip(r_t, 1 - eps, 1 + eps_high)) A_t log pi(a_t|s_t) ],   r_t = pi(a_t|s_t) / pi_old(a_t|s_t)

    Beyond the interval a step keeps its gradient, which PPO's loses; only its weight stops growing. The gradient alone
    is meaningful, not the value. With ``clip`` 1 there is no lower bound, as in the paper's experiments.

    Source: MiniMax 2025, eqs. 4 and 5 (arXiv:2506.13585).
    """
    ratio = fill_masked(logprobs.detach() - old_logprobs, mask).clamp(max=LARGEST_LOG_RATIO).exp()
    weight = ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    return policy_gradient_loss(logprobs, weight * fill_masked(advantages, mask), mask, average=average)


def surrogate_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None) -> Tensor:
    """The importance-weighted surrogate, negated so that lower is better; valid within a trust region.

        L = -E_t[ r_t A_t ],   r_t = pi(a_t|s_t) / pi_old(a_t|s_t)

    Source: Schulman et al. 2015, eq. 14 (arXiv:1502.05477).
    """
    return -masked_mean(fill_masked(logprobs - old_logprobs, mask).exp() * fill_masked(advantages, mask), mask)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor | None, *, average: Reduction = masked_mean) -> Tensor:
    """Half the mean squared error, ``E_t[(V_t - R_t)^2] / 2``.

    The half is part of the loss (as in OpenAI baselines and CleanRL); Stable-Baselines3 has none, so its
    ``vf_coef`` corresponds to twice that ``value_coef`` here.
    """
    return 0.5 * average(fill_masked(values - returns, mask).square(), mask)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor | None,
    *,
    clip: float,
    average: Reduction = masked_mean,
) -> Tensor:
    """Half the mean of the larger of two squared errors: of V, and of V clipped to the neighborhood of the old V.

        L = E_t[ max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) ] / 2

    Source: OpenAI baselines, ppo2/model.py. Due to the maximum, clipping can slow the critic but never hides an error.
    ``old_values [B, T]`` are of the critic during the rollout; eps is ``clip``, > 0, in reward units as all of them.
    """
    change = fill_masked(values - old_values, mask)
    error = fill_masked(values - returns, mask)
    near_error = fill_masked(old_values - returns, mask) + change.clamp(-clip, clip)
    return 0.5 * average(torch.maximum(error.square(), near_error.square()), mask)


def entropy_loss(entropy: Tensor, mask: Tensor | None, *, average: Reduction = masked_mean) -> Tensor:
    """The negated mean entropy, nats per step: minimizing it keeps the policy exploring.

    Source: Williams & Peng 1991; Mnih et al. 2016 (arXiv:1602.01783).
    """
    return -average(entropy, mask)
