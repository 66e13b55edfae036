"""The policy's own statistics of texts that an engine wrote, and the correction for their difference."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from agents.engines.protocol import Written
from agents.functional.correction import effective_sample_size, importance_weights
from agents.functional.masked import fill_masked, masked_mean
from agents.lm.causal_lm import CausalLMPolicy
from agents.rollout import Rollout
from agents.text.config import Correction
from textenvs.tokens.rows import PAD

METRICS: dict[str, str] = {
    "rollout/mismatch_mean": "an engine or async_rollouts: mean over tokens of |log pi - log mu|, nats, of the policy "
    "before the update and of what sampled",
    "rollout/mismatch_max": "its largest value over the tokens, nats",
    "rollout/effective_sample_size": "(sum w)^2 / (n sum w^2) of the importance weights of n tokens, [0, 1]",
    "rollout/share_corrected": "share of tokens whose importance weight was cut or masked, [0, 1]",
    "rollout/staleness": "mean over tokens of the updates by which the weights that sampled were behind",
}


def texts_of(
    policy: CausalLMPolicy, prompts: Tensor, written: Written, *, correction: Correction, on_policy: bool
) -> dict[str, Tensor]:
    """What was written after ``prompts [B, P]``, as columns ``[B, T]`` of a rollout.

    With a correction log-probs and values are the policy's, from one pass; without one the writer's log-probs count as
    the policy's own. What wrote is kept beside them unless it was the policy itself.
    """
    texts = {"actions": written.ids, "logprobs": written.logprobs}
    if not on_policy or correction != "none":
        texts |= {"behavior_logprobs": written.logprobs, "versions": written.version}
    exists = written.ids != PAD
    if correction != "none":
        with torch.no_grad():
            own = policy.evaluate(prompts, written.ids, exists)
        texts["logprobs"], values = fill_masked(own.logprobs, exists), fill_masked(own.values, exists)
    elif written.values is not None:
        values = written.values
    elif policy.has_critic:
        values = policy.completion_values(prompts, written.ids, exists)
    else:
        values = torch.zeros_like(written.logprobs)
    return texts | {"values": values}


def corrected(
    rollout: Rollout, *, mode: Correction, bounds: tuple[float, float], version: int
) -> tuple[Rollout, dict[str, float]]:
    """The rollout with its importance weights, and ``METRICS`` without their prefix.

    Nothing changes where the policy itself wrote. ``version`` is the policy's; the rest as `TextCollector`'s.
    """
    written, mask, versions = rollout.behavior_logprobs, rollout.mask, rollout.versions
    if written is None or versions is None:
        return rollout, {}
    low, high = bounds
    weights, outside = importance_weights(rollout.logprobs, written, mask, mode=mode, low=low, high=high)
    gap = fill_masked((rollout.logprobs - written).abs(), mask)
    metrics = {
        "mismatch_mean": float(masked_mean(gap, mask)),
        "mismatch_max": float(gap.max()),
        "effective_sample_size": float(effective_sample_size(weights, mask)),
        "share_corrected": float(masked_mean(outside.float(), mask)),
        "staleness": float(masked_mean((version - versions).float(), mask)),
    }
    return (rollout if mode == "none" else replace(rollout, weights=weights)), metrics
