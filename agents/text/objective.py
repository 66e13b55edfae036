"""The loss of a language model, composed of the pure losses and KL estimators that ``TextAgentConfig`` selects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.functional import kl, losses
from agents.functional.masked import Reduction, constant_mean, fill_masked, masked_mean, row_means, sequence_mean
from agents.interfaces import Evaluation
from agents.lm.causal_lm import CausalLMPolicy
from agents.rollout import Batch
from agents.text.config import TextAgentConfig
from agents.update import Objective, Share, critic_loss

REDUCTIONS: dict[str, tuple[Reduction, Share]] = {
    "token": (masked_mean, "steps"),
    "sequence": (sequence_mean, "rows"),
    "constant": (constant_mean, "rows"),
}
"""Each ``average`` with the unit that it averages over."""
ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}


def text_objective(config: TextAgentConfig, *, clip: float, beta: float) -> Objective:
    """``L_policy + value_coef L_value + entropy_coef L_entropy + beta KL``, with the terms that ``config`` enables.

    The batch's importance weights scale the terms of policy and KL. Every policy loss is homogeneous in the advantage,
    so that its weighted terms are those of the weighted advantages.

    Args:
        config: the terms, and the average over tokens, which is the same in all of them.
        clip: eps of this update.
        beta: KL coefficient in the loss, reward units per nat; unused if only the reward charges the KL.
    """
    average, _ = REDUCTIONS[config.average]

    def objective(evaluation: Evaluation, batch: Batch, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        advantages = batch.advantages if batch.weights is None else batch.weights * batch.advantages
        given = (evaluation.logprobs, batch.old_logprobs, advantages, mask)
        bounds: dict[str, Any] = {"clip": clip, "clip_high": config.clip_high, "average": average}
        if config.policy_loss == "plain":
            total = losses.policy_gradient_loss(evaluation.logprobs, advantages, mask, average=average)
        elif config.policy_loss == "cispo":
            total = losses.clipped_weight_loss(*given, **bounds)
        else:
            gspo = config.policy_loss == "gspo"
            total = losses.clipped_policy_loss(*given, dual_clip=config.dual_clip, sequence_ratio=gspo, **bounds)
        if batch.branches is not None:
            total = total + branch_loss(evaluation, batch, mask, dual_clip=config.dual_clip, **bounds)
        parts = {"policy_loss": total}
        if config.policy_loss == "gspo":
            parts["clip_fraction"] = _clipped_rows(evaluation, batch, mask, clip, config.clip_high)
        if config.uses_critic:
            parts["value_loss"] = critic_loss(config, evaluation, batch, mask, average)
            total = torch.add(total, parts["value_loss"], alpha=config.value_coef)
        if config.entropy_coef:
            entropy = losses.entropy_loss(evaluation.entropy, mask, average=average)
            total = torch.add(total, entropy, alpha=config.entropy_coef)
        if config.kl_in != "reward":
            found = _kl(config.kl_estimator or "k3", evaluation, batch)
            found = found if batch.weights is None else batch.weights * found
            parts["kl_loss"] = average(fill_masked(found, mask), mask)
            total = torch.add(total, parts["kl_loss"], alpha=beta)
        return total, parts

    return objective


def branch_loss(evaluation: Evaluation, batch: Batch, mask: Tensor | None, **bounds: Any) -> Tensor:
    """The clipped loss of the tokens that were drawn besides, the sum over those of a state; as the taken ones'."""
    new, old, advantages = evaluation.branch_logprobs, batch.branch_logprobs, batch.branch_advantages
    if new is None or old is None or advantages is None:
        raise ValueError(f"branches: expected log-probs and advantages of them, received {new}, {old}, {advantages}")
    each = zip(new.unbind(-1), old.unbind(-1), advantages.unbind(-1), strict=True)
    return torch.stack([losses.clipped_policy_loss(*one, mask, **bounds) for one in each]).sum()


def _clipped_rows(
    evaluation: Evaluation, batch: Batch, mask: Tensor | None, clip: float, clip_high: float | None
) -> Tensor:
    """Share of rows whose ratio (GSPO's) lies outside the interval, [0, 1]."""
    change = row_means(evaluation.logprobs.detach() - batch.old_logprobs, mask).expm1()
    outside = (change < -clip) | (change > (clip if clip_high is None else clip_high))
    return masked_mean(outside.float(), None if mask is None else mask.any(1))


def _kl(estimator: str, evaluation: Evaluation, batch: Batch) -> Tensor:
    """KL to the reference, ``[B, T]`` nats, with gradient."""
    if estimator == "full":
        if evaluation.kl is None:
            raise ValueError('kl_estimator "full" needs the reference itself: pass it to the agent')
        return evaluation.kl
    if batch.ref_logprobs is None:
        raise ValueError("a KL in the loss needs the reference's log-probs: put KLShaping around the environment")
    return ESTIMATORS[estimator](evaluation.logprobs, batch.ref_logprobs)


class WithExactKL:
    """A policy whose evaluations include the exact KL to ``reference``; for ``agents.update``."""

    keeps_rows = True

    def __init__(self, policy: CausalLMPolicy, reference: CausalLMPolicy) -> None:
        self.policy, self.reference = policy, reference

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None, **options: Any) -> Evaluation:
        """As ``CausalLMPolicy.evaluate`` with ``reference``."""
        return self.policy.evaluate(observations, actions, mask, reference=self.reference, **options)
