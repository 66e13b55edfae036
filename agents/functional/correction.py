"""Importance weights for texts that another distribution sampled than the one that is trained; pure functions.

The sampler differs from the trainer by its kernels, its number type, or weights that are an update behind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.losses import LARGEST_LOG_RATIO
from agents.functional.masked import fill_masked


def importance_weights(
    logprobs: Tensor, behavior_logprobs: Tensor, mask: Tensor, *, mode: str, low: float = 0.0, high: float
) -> tuple[Tensor, Tensor]:
    """Weight of each step's term in the policy loss, and where a bound made it another than the ratio.

        rho_t = pi_old(a_t|s_t) / mu(a_t|s_t)                        "token_..."
        rho_t = prod_k pi_old(a_k|s_k) / mu(a_k|s_k), of its row     "sequence_..."
        w_t = min(rho_t, high)                                       "..._truncate"
        w_t = rho_t if low <= rho_t <= high, else 0                  "..._mask"

    mu is the sampler and pi_old the trainer's policy before the update; the ratio in the loss stays pi / pi_old. A
    weight per token leaves what was written before it distributed as the sampler writes; the row's product does not.

    Source: truncated per token, TIS: Ionides 2008, "Truncated importance sampling", applied to samplers by Yao et al.
    2025, "Your efficient RL framework secretly brings you off-policy RL training" (high 2). Masked per token, IcePop:
    Ling team 2025 (arXiv:2510.18855; low 0.5, high 5). Per row: Liu et al. 2025, "When speed kills stability:
    Demystifying RL collapse from the training-inference mismatch"; TRL's default masks at 3.

    Args:
        logprobs: ``[B, T]`` nats, of pi_old.
        behavior_logprobs: ``[B, T]`` nats, of mu.
        mask: ``[B, T]`` True on sampled tokens.
        mode: see above; "none": all weights are 1.
        low, high: bounds of the ratio; ``low`` is of masks.

    Returns:
        ``[B, T]`` weights and ``[B, T]`` bool; 0 and False where ``mask`` is False.
    """
    log_ratio = fill_masked(logprobs - behavior_logprobs, mask)
    if mode == "none":
        return mask.to(log_ratio.dtype), torch.zeros_like(mask)
    if mode.startswith("sequence"):
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    truncates = mode.endswith("truncate")
    outside = mask & ((ratio > high) if truncates else (ratio > high) | (ratio < low))
    bounded = ratio.clamp(max=high) if truncates else ratio.masked_fill(outside, 0.0)
    return fill_masked(bounded, mask), outside


def effective_sample_size(weights: Tensor, mask: Tensor) -> Tensor:
    """Kish's effective share of the n steps of ``weights [B, T]``: ``(sum w)^2 / (n sum w^2)``, in [0, 1].

    Source: Kish 1965, "Survey sampling", section 11.7.
    """
    kept = weights[mask].double()
    return kept.sum().square() / (len(kept) * kept.square().sum()).clamp(min=torch.finfo(torch.float64).tiny)
