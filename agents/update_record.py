"""Metrics of an update: losses, entropy, KL, clip fraction and gradient norm over its minibatches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agents.functional.kl import k3
from agents.functional.masked import explained_variance, masked_mean, masked_var
from agents.interfaces import Evaluation
from agents.rollout import Batch
from agents.runs.distributed import Processes


class UpdateRecord:
    """Metrics of an update's minibatches, collected as tensors and converted to numbers once, at the end."""

    def __init__(self, *, dense: bool) -> None:
        self.dense = dense
        self.parts: dict[str, list[Tensor]] = {}
        self.log_ratios: list[Tensor] = []
        self.entropies: list[Tensor] = []
        self.grad_norms: list[Tensor] = []
        self.minibatches = 0.0

    def mask_of(self, batch: Batch) -> Tensor | None:
        """The batch's mask; None if the whole batch is valid."""
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
        """Record a part of a minibatch of weight ``share``; returns the log-ratios ``[N]`` of its valid steps."""
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

    def all_gather(self, processes: Processes) -> UpdateRecord:
        """The record of all processes' shards."""
        if processes.count == 1:
            return self
        own = (self.parts, self.log_ratios, self.entropies)
        shards = processes.all_gather((self.minibatches, pytree.tree_map(Tensor.cpu, own)))
        merged = UpdateRecord(dense=self.dense)
        merged.grad_norms = [norm.cpu() for norm in self.grad_norms]
        for minibatches, (parts, log_ratios, entropies) in shards:
            merged.minibatches += minibatches
            merged.log_ratios += log_ratios
            merged.entropies += entropies
            for name, values in parts.items():
                merged.parts.setdefault(name, []).extend(values)
        return merged

    def metrics(self, clip: float, clip_high: float) -> dict[str, float]:
        """``train/...`` metrics: means over all minibatches, and the drift of the first one."""
        log_ratio = torch.cat(self.log_ratios)
        metrics = {f"train/{name}": torch.stack(values).sum() / self.minibatches for name, values in self.parts.items()}
        metrics["train/entropy"] = torch.cat(self.entropies).mean()
        metrics["train/approx_kl"] = mean_k3(log_ratio)
        metrics["train/logprob_drift"] = self.log_ratios[0].abs().mean()
        change = log_ratio.exp() - 1.0
        metrics.setdefault("train/clip_fraction", ((change < -clip) | (change > clip_high)).float().mean())
        metrics["train/ratio_mean"], metrics["train/ratio_max"] = 1.0 + change.mean(), 1.0 + change.max()
        if self.grad_norms:
            metrics["train/grad_norm"] = torch.stack(self.grad_norms).mean()
        return _numbers(metrics)


def _numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """0-dimensional tensors as numbers, in one transfer from their device."""
    return dict(zip(metrics, torch.stack([value.float() for value in metrics.values()]).tolist(), strict=True))


def advantage_metrics(batch: Batch, *, has_critic: bool) -> dict[str, float]:
    """Mean and deviation of advantages, and with a critic of returns, before any whitening."""
    columns = (
        {"advantage": batch.advantages, "return": batch.returns} if has_critic else {"advantage": batch.advantages}
    )
    found: dict[str, Tensor] = {}
    for name, values in columns.items():
        found[f"train/{name}_mean"] = masked_mean(values, batch.mask)
        found[f"train/{name}_std"] = masked_var(values, batch.mask, unbiased=False).sqrt()
    if has_critic:
        found["train/explained_variance"] = explained_variance(batch.old_values, batch.returns, batch.mask)
    return _numbers(found)


def mean_k3(log_ratio: Tensor) -> Tensor:
    """Estimate of KL(pi_old || pi) from actions of pi_old, nats."""
    return k3(torch.zeros_like(log_ratio), log_ratio).mean()
