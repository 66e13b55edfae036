"""The optimizer loop: epochs, minibatches, microbatches, gradient clipping, early stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.config import UpdateConfig
from agents.functional import losses
from agents.functional.masked import Reduction, masked_mean, whiten
from agents.interfaces import Evaluation, Learner
from agents.rollout import Batch
from agents.runs.distributed import ALONE, Processes
from agents.update_record import UpdateRecord, advantage_metrics, mean_k3
from reward_models.gradients import clip_gradient

Objective = Callable[[Evaluation, Batch, "Tensor | None"], "tuple[Tensor, dict[str, Tensor]]"]
"""``(evaluation, minibatch, mask) -> (loss, parts to log)``: means over valid steps; mask None: all are valid."""

Share = Literal["steps", "rows"]
"""What a minibatch's means are over: its valid steps, or its rows (see ``agents.functional.masked``)."""


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
    """The value loss, clipped if ``config.value_clip`` is set; see ``agents.functional.losses``."""
    if config.value_clip is None:
        return losses.value_loss(evaluation.values, batch.returns, mask, average=average)
    return losses.clipped_value_loss(
        evaluation.values, batch.old_values, batch.returns, mask, clip=config.value_clip, average=average
    )


def own_objective(objective: Objective | None) -> Objective | None:
    """A user's ``objective``, whose answers are checked; None stays None.

    Raises:
        ValueError: for what cannot be called, or, when it is called, for another answer than a scalar loss with a
            gradient and a dict of scalars.
    """
    if objective is None:
        return None
    if not callable(objective):
        raise ValueError(f"objective: expected a function (evaluation, batch, mask), received {objective!r}")

    @wraps(objective)
    def checked(evaluation: Evaluation, batch: Batch, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        found: Any = objective(evaluation, batch, mask)
        loss, parts = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
        scalars = [loss, *parts.values()] if isinstance(parts, dict) else [None]
        fits = all(isinstance(each, Tensor) and each.dim() == 0 for each in scalars)
        if not fits or not isinstance(loss, Tensor) or not loss.requires_grad or not isinstance(parts, dict):
            raise ValueError(f"objective: expected (scalar loss with a gradient, dict of scalars), received {found!r}")
        return loss, parts

    return checked


def absent_objective(name: str | None) -> Objective | None:
    """In place of the objective ``name`` that an agent was trained with, where it only predicts; None without one."""
    if name is None:
        return None

    def absent(*batch: object) -> Any:
        raise ValueError(f"this agent was trained with an objective, {name}: pass objective= to load")

    absent.__qualname__ = name
    return absent


def update(
    policy: Learner,
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
    """Train on ``batch``: every valid step is used once per epoch.

    Minibatches differ in size by one row at most. Losses are means over the valid steps of a minibatch, also if it is
    split into microbatches: each is weighted by its share of those steps (or rows, see ``reduction``).

    Args:
        policy: what is trained.
        optimizer: of the policy's parameters, with the learning rate set.
        clip: eps of this update, >= 0.
        generator: of the minibatches; on the CPU.
        objective: the loss; None: ``ppo_objective``.
        clip_high: upper eps of the logged clip fraction, if it differs from the lower one.
        reduction: what the objective's means are over.
        processes: with the same batch and policy; each takes its shard of every minibatch.

    Returns:
        ``train/...`` metrics, explained in ``agents.runs.logging.METRICS``.

    Raises:
        ValueError: if the batch has no valid step.
        FloatingPointError: if a gradient (its step is not taken) or the loss is not finite.
    """
    fast_gradient = getattr(policy, "ppo_gradient", None)
    if fast_gradient is not None and (objective or config.microbatch_size or processes.count > 1 or config.value_clip):
        raise ValueError("a FastMLP supports PPO's plain loss on whole minibatches only: pass the policy itself")
    objective = objective or ppo_objective(config, clip=clip)
    raw = batch
    if config.normalize_advantages == "batch":
        batch = _with_advantages(batch, whiten(batch.advantages, batch.mask))
    batch = batch if policy.keeps_rows else batch.single_steps()
    record = UpdateRecord(dense=bool(batch.mask.all()))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def gradient(minibatch: Batch) -> Tensor:
        if fast_gradient is not None:
            return record.add(minibatch, None, *fast_gradient(minibatch, config, clip))
        log_ratio = _gradient(policy, optimizer, minibatch, config, objective, record, reduction, processes)
        processes.all_reduce_gradients(parameters)
        return log_ratio

    stopped = _take_steps(optimizer, parameters, batch, config, generator, gradient, record, processes)
    record = record.all_gather(processes)
    metrics = record.metrics(clip, clip if clip_high is None else clip_high)
    metrics |= advantage_metrics(raw, has_critic="value_loss" in record.parts) | {"train/early_stop": float(stopped)}
    if not math.isfinite(metrics["train/loss"]):
        raise FloatingPointError(f"the loss is not finite: {metrics}")
    return metrics


def _take_steps(
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    batch: Batch,
    config: UpdateConfig,
    generator: torch.Generator,
    gradient: Callable[[Batch], Tensor],
    record: UpdateRecord,
    processes: Processes,
) -> bool:
    """A step for each minibatch of each epoch; True if the KL stopped them early."""
    for _ in range(config.epochs):
        for minibatch in minibatches(batch, config.minibatch_size or batch.num_rows, generator):
            if config.normalize_advantages == "minibatch":
                minibatch = _with_advantages(minibatch, whiten(minibatch.advantages, record.mask_of(minibatch)))
            log_ratio = gradient(minibatch)
            if config.target_kl is not None and _mean_k3_of_all(log_ratio, processes) > 1.5 * config.target_kl:
                return True
            norm = clip_gradient(parameters, config.max_grad_norm)
            if not math.isfinite(norm.item()):
                raise FloatingPointError(
                    f"the gradient is not finite, its norm is {norm.item()}: the step was not taken"
                )
            record.grad_norms.append(norm)
            optimizer.step()
    return False


def _gradient(
    policy: Learner,
    optimizer: torch.optim.Optimizer,
    minibatch: Batch,
    config: UpdateConfig,
    objective: Objective,
    record: UpdateRecord,
    reduction: Share,
    processes: Processes,
) -> Tensor:
    """Compute the gradients of this process's shard of ``minibatch``; returns the log-ratios of its valid steps."""
    optimizer.zero_grad()
    log_ratios = []
    for part, share in _shares(minibatch, config.microbatch_size or minibatch.num_rows, reduction, processes):
        mask = record.mask_of(part)
        others: dict[str, Any] = {} if part.branches is None else {"branches": part.branches}
        evaluation = policy.evaluate(part.observations, part.actions, mask, **others)
        loss, parts = objective(evaluation, part, mask)
        (loss if share == 1.0 else loss * share).backward()
        if share > 0.0:
            log_ratios.append(record.add(part, mask, evaluation, loss, parts, share))
    return torch.cat(log_ratios) if log_ratios else minibatch.old_logprobs.new_empty(0)


def _shares(minibatch: Batch, size: int, reduction: Share, processes: Processes) -> list[tuple[Batch, float]]:
    """This process's microbatches of at most ``size`` rows with their weights; 0 is that of one which only keeps step
    with other processes, a row of another's share."""
    if size >= minibatch.num_rows and processes.count == 1:
        return [(minibatch, 1.0)]
    ours, count = processes.shard(minibatch.num_rows), _weight(minibatch, reduction)
    parts = [minibatch.rows(slice(begin, min(begin + size, ours.stop))) for begin in range(ours.start, ours.stop, size)]
    shares = [(part, weight / count) for part in parts if (weight := _weight(part, reduction))]
    idle = processes.most(len(shares)) - len(shares)
    row = int(minibatch.mask.any(1).nonzero()[0]) if idle else 0
    return shares + [(minibatch.rows(slice(row, row + 1)), 0.0)] * idle


def _weight(batch: Batch, reduction: Share) -> float:
    """The number of valid steps or rows."""
    return float((batch.mask if reduction == "steps" else batch.mask.any(1)).sum())


def minibatches(batch: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """The shuffled batch (one gather) in slices of nearly equal length."""
    rows = batch.num_rows
    pieces = math.ceil(rows / size)
    if pieces == 1:
        yield batch
        return
    order = torch.randperm(rows, generator=generator)
    shuffled = batch.rows(order.to(batch.mask.device))
    for i in range(pieces):
        yield shuffled.rows(slice(i * rows // pieces, (i + 1) * rows // pieces))


def _mean_k3_of_all(log_ratio: Tensor, processes: Processes) -> float:
    """``mean_k3`` over the shards of all processes."""
    return float(mean_k3(torch.cat([log_ratio.cpu() for log_ratio in processes.all_gather(log_ratio)])))


def _with_advantages(batch: Batch, advantages: Tensor) -> Batch:
    return Batch(**{**vars(batch), "advantages": advantages})


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradient reaches ``parameters`` inside the block, so that an optimizer step leaves them as they are."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
