"""The one optimizer loop: epochs, minibatches, microbatches, clipping, early stop. Nothing here collects or logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agents.config import UpdateConfig
from agents.functional import losses
from agents.functional.kl import k3
from agents.functional.masked import Reduction, fill_masked, masked_mean, masked_var, whiten
from agents.interfaces import Evaluation
from agents.rollout import Batch
from agents.runs.distributed import ALONE, Processes

Objective = Callable[[Evaluation, Batch, "Tensor | None"], "tuple[Tensor, dict[str, Tensor]]"]
"""``(evaluation, minibatch, mask) -> (loss, parts to log)``: means over the steps that count; mask None counts all."""

Share = Literal["steps", "rows"]
"""What a minibatch's means are over: its steps that count, or its rows (see ``agents.functional.masked``)."""


def ppo_objective(config: UpdateConfig, *, clip: float) -> Objective:
    """PPO's loss: ``L_policy + value_coef L_value + entropy_coef L_entropy`` (arXiv:1707.06347, eq. 9, negated)."""

    def objective(evaluation: Evaluation, batch: Batch, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        policy = losses.clipped_policy_loss(evaluation.logprobs, batch.old_logprobs, batch.advantages, mask, clip=clip)
        value = critic_loss(config, evaluation, batch, mask)
        total = torch.add(policy, value, alpha=config.value_coef)
        parts = {"policy_loss": policy, "value_loss": value}
        if config.entropy_coef:
            entropy = losses.entropy_loss(evaluation.entropy, mask)
            total = torch.add(total, entropy, alpha=config.entropy_coef)
        return total, parts

    return objective


def critic_loss(
    config: UpdateConfig, evaluation: Evaluation, batch: Batch, mask: Tensor | None, average: Reduction = masked_mean
) -> Tensor:
    """The value loss that ``config`` asks for, plain or clipped; see ``agents.functional.losses``."""
    if config.value_clip is None:
        return losses.value_loss(evaluation.values, batch.returns, mask, average=average)
    return losses.clipped_value_loss(
        evaluation.values, batch.old_values, batch.returns, mask, clip=config.value_clip, average=average
    )


def update(
    policy: Any,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: UpdateConfig,
    *,
    clip: float,
    generator: torch.Generator,
    objective: Objective | None = None,
    clip_high: float | None = None,
    reduction: Share = "steps",
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Learn from ``batch``: every step that counts is used exactly once per epoch.

    Minibatches differ in size by one row at most, so none is a small noisy remainder. A minibatch's losses are means
    over its own steps that count, also where it is cut into microbatches of ragged rows: each microbatch is weighted by
    its share of those steps, or of the rows, where the means are over rows.

    Args:
        policy: with ``evaluate`` and ``keeps_rows``.
        optimizer: over the policy's parameters, with the learning rate set.
        batch: ``[B, T]``.
        config: see ``UpdateConfig``.
        clip: eps of this update, >= 0.
        generator: shuffles; a CPU generator.
        objective: another loss than ``ppo_objective``.
        clip_high: upper eps, where it differs from the lower one; for the clip fraction (the loss has its own).
        reduction: what the objective's means are over.
        processes: that have the same batch and policy; each takes its share of every minibatch.

    Returns:
        ``train/...`` figures (``agents.runs.logging.METRICS`` explains them); those of the critic where it is trained.

    Raises:
        ValueError: if the batch has no step that counts.
        FloatingPointError: if a gradient or the loss is not finite any more; a step by such a gradient is not taken.
    """
    quick = objective is None and hasattr(policy, "ppo_gradient")
    cut = config.microbatch_size or processes.count > 1
    if hasattr(policy, "ppo_gradient") and (objective or cut or config.value_clip):
        raise ValueError("a FastMLP knows PPO's plain loss on whole minibatches only; pass the policy itself")
    objective = objective or ppo_objective(config, clip=clip)
    raw = batch
    if config.normalize_advantages == "batch":
        batch = _with_advantages(batch, whiten(batch.advantages, batch.mask))
    if not policy.keeps_rows:
        batch = batch.single_steps()
    record = _Record(dense=bool(batch.mask.all()))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stopped = False
    for _ in range(config.epochs):
        for minibatch in minibatches(batch, config.minibatch_size or batch.num_rows, generator):
            if config.normalize_advantages == "minibatch":
                minibatch = _with_advantages(minibatch, whiten(minibatch.advantages, record.mask_of(minibatch)))
            if quick:
                log_ratio = record.add(minibatch, None, *policy.ppo_gradient(minibatch, config, clip))
            else:
                log_ratio = _gradient(policy, optimizer, minibatch, config, objective, record, reduction, processes)
                processes.all_reduce_gradients(parameters)
            if config.target_kl is not None and _mean_k3_of_all(log_ratio, processes) > 1.5 * config.target_kl:
                stopped = True
                break
            norm = clip_gradient(parameters, config.max_grad_norm)
            if not math.isfinite(norm.item()):
                raise FloatingPointError(
                    f"the gradient is not finite any more (its norm is {norm.item()}); this step was not taken"
                )
            record.grad_norms.append(norm)
            optimizer.step()
        if stopped:
            break
    record = record.of_all(processes)
    metrics = record.metrics(clip, clip if clip_high is None else clip_high)
    metrics |= _judgment(raw, valued="value_loss" in record.parts)
    metrics["train/early_stop"] = float(stopped)
    if not math.isfinite(metrics["train/loss"]):
        raise FloatingPointError(f"the loss is not finite: {metrics}")
    return metrics


def _judgment(batch: Batch, *, valued: bool) -> dict[str, float]:
    """How the batch was judged, before any whitening; returns and values only where a critic learns them."""
    columns = {"advantage": batch.advantages, "return": batch.returns} if valued else {"advantage": batch.advantages}
    found: dict[str, Tensor] = {}
    for name, values in columns.items():
        found[f"train/{name}_mean"] = masked_mean(values, batch.mask)
        found[f"train/{name}_std"] = masked_var(values, batch.mask, unbiased=False).sqrt()
    if valued:
        found["train/explained_variance"] = explained_variance(batch.old_values, batch.returns, batch.mask)
    return _numbers(found)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor | None) -> Tensor:
    """``1 - Var(returns - values) / Var(returns)``: 1 is a perfect critic, 0 one that knows the mean only.

    Args:
        values: ``[B, T]`` reward units.
        returns: ``[B, T]`` reward units.
        mask: ``[B, T]`` True on steps that count; None counts all.

    Returns:
        0-dimensional; 0 where the returns do not vary.
    """
    spread = masked_var(returns, mask, unbiased=False)
    left = masked_var(fill_masked(returns - values, mask), mask, unbiased=False)
    return torch.where(spread > 0, 1.0 - left / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0.0)


def _gradient(
    policy: Any,
    optimizer: torch.optim.Optimizer,
    minibatch: Batch,
    config: UpdateConfig,
    objective: Objective,
    record: _Record,
    reduction: Share,
    processes: Processes,
) -> Tensor:
    """Fill the gradients from this process's share of ``minibatch``; log-ratios there, flat, of steps that count."""
    optimizer.zero_grad()
    ours = processes.shard(minibatch.num_rows)
    size = config.microbatch_size or minibatch.num_rows
    whole = size >= minibatch.num_rows and processes.count == 1
    count = 1.0 if whole else _weight(minibatch, reduction)
    log_ratios = []
    for start in range(ours.start, ours.stop, size):
        part = minibatch if whole else minibatch.rows(slice(start, min(start + size, ours.stop)))
        share = 1.0 if whole else _weight(part, reduction) / count
        if share == 0.0:
            continue
        mask = record.mask_of(part)
        evaluation = policy.evaluate(part.observations, part.actions, mask)
        loss, parts = objective(evaluation, part, mask)
        (loss if whole else loss * share).backward()
        log_ratios.append(record.add(part, mask, evaluation, loss, parts, share))
    return torch.cat(log_ratios) if log_ratios else minibatch.old_logprobs.new_empty(0)


def _weight(batch: Batch, reduction: Share) -> float:
    """The number of steps, or of rows, that count."""
    return float((batch.mask if reduction == "steps" else batch.mask.any(1)).sum())


class _Record:
    """Gathers figures as tensors; numbers are taken from them once, at the end."""

    def __init__(self, *, dense: bool) -> None:
        self.dense = dense
        self.parts: dict[str, list[Tensor]] = {}
        self.log_ratios: list[Tensor] = []
        self.entropies: list[Tensor] = []
        self.grad_norms: list[Tensor] = []
        self.minibatches = 0.0

    def mask_of(self, batch: Batch) -> Tensor | None:
        return None if self.dense else batch.mask

    def add(
        self,
        batch: Batch,
        mask: Tensor | None,
        evaluation: Evaluation,
        loss: Tensor,
        parts: dict[str, Tensor],
        share: float = 1.0,
    ) -> Tensor:
        self.minibatches += share
        for name, value in (("loss", loss), *parts.items()):
            self.parts.setdefault(name, []).append(value.detach() if share == 1.0 else value.detach() * share)
        log_ratio = evaluation.logprobs.detach().flatten() - batch.old_logprobs.flatten()
        entropy = evaluation.entropy.detach().flatten()
        if mask is not None:
            log_ratio, entropy = log_ratio[mask.flatten()], entropy[mask.flatten()]
        self.log_ratios.append(log_ratio)
        self.entropies.append(entropy)
        return log_ratio

    def of_all(self, processes: Processes) -> _Record:
        """The record of all processes' shares."""
        if processes.count == 1:
            return self
        known = (self.parts, self.log_ratios, self.entropies)
        shares = processes.all_gather((self.minibatches, pytree.tree_map(Tensor.cpu, known)))
        merged = _Record(dense=self.dense)
        merged.grad_norms = [norm.cpu() for norm in self.grad_norms]
        for minibatches, (parts, log_ratios, entropies) in shares:
            merged.minibatches += minibatches
            merged.log_ratios += log_ratios
            merged.entropies += entropies
            for name, values in parts.items():
                merged.parts.setdefault(name, []).extend(values)
        return merged

    def metrics(self, clip: float, clip_high: float) -> dict[str, float]:
        log_ratio = torch.cat(self.log_ratios)
        figures = {f"train/{name}": torch.stack(values).sum() / self.minibatches for name, values in self.parts.items()}
        figures["train/entropy"] = torch.cat(self.entropies).mean()
        figures["train/approx_kl"] = _mean_k3(log_ratio)
        figures["train/logprob_drift"] = self.log_ratios[0].abs().mean()
        change = log_ratio.exp() - 1.0
        figures["train/clip_fraction"] = ((change < -clip) | (change > clip_high)).float().mean()
        figures["train/ratio_mean"], figures["train/ratio_max"] = 1.0 + change.mean(), 1.0 + change.max()
        if self.grad_norms:
            figures["train/grad_norm"] = torch.stack(self.grad_norms).mean()
        return _numbers(figures)


def _numbers(figures: dict[str, Tensor]) -> dict[str, float]:
    """0-dimensional tensors as numbers, brought from their device in one go."""
    return dict(zip(figures, torch.stack([value.float() for value in figures.values()]).tolist(), strict=True))


def minibatches(batch: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """The batch in random order (one gather), in contiguous slices of nearly equal length."""
    rows = batch.num_rows
    pieces = math.ceil(rows / size)
    if pieces == 1:
        yield batch
        return
    order = torch.randperm(rows, generator=generator)
    shuffled = batch.rows(order.to(batch.mask.device))
    for i in range(pieces):
        yield shuffled.rows(slice(i * rows // pieces, (i + 1) * rows // pieces))


def clip_gradient(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Scale gradients down to Euclidean norm ``max_norm`` if they exceed it; the norm they had, 0-dimensional."""
    if len(parameters) > 1:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    gradient = parameters[0].grad
    assert gradient is not None
    norm = torch.linalg.vector_norm(gradient)
    gradient.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))  # 1e-6 as in torch.nn.utils
    return norm


def _mean_k3_of_all(log_ratio: Tensor, processes: Processes) -> float:
    """The same over the shares of all processes."""
    return float(_mean_k3(torch.cat([log_ratio.cpu() for log_ratio in processes.all_gather(log_ratio)])))


def _mean_k3(log_ratio: Tensor) -> Tensor:
    """The estimate of KL(pi_old || pi) from actions of pi_old, nats."""
    return k3(torch.zeros_like(log_ratio), log_ratio).mean()


def _with_advantages(batch: Batch, advantages: Tensor) -> Batch:
    return Batch(**{**vars(batch), "advantages": advantages})
