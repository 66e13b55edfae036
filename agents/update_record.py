"""What an update logs: losses, entropy, KL, clip fraction and gradient norm over its minibatches."""

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
    """Figures of an update's minibatches, gathered as tensors and turned into numbers once, at the end."""

    def __init__(self, *, dense: bool) -> None:
        self.dense = dense
        self.parts: dict[str, list[Tensor]] = {}
        self.log_ratios: list[Tensor] = []
        self.entropies: list[Tensor] = []
        self.grad_norms: list[Tensor] = []
        self.minibatches = 0.0

    def mask_of(self, batch: Batch) -> Tensor | None:
        """The batch's mask; None where the whole batch counts."""
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
        """Take in a part of a minibatch that weighs ``share``; its log-ratios, flat, of steps that count."""
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

    def of_all(self, processes: Processes) -> UpdateRecord:
        """The record of all processes' shares."""
        if processes.count == 1:
            return self
        known = (self.parts, self.log_ratios, self.entropies)
        shares = processes.all_gather((self.minibatches, pytree.tree_map(Tensor.cpu, known)))
        merged = UpdateRecord(dense=self.dense)
        merged.grad_norms = [norm.cpu() for norm in self.grad_norms]
        for minibatches, (parts, log_ratios, entropies) in shares:
            merged.minibatches += minibatches
            merged.log_ratios += log_ratios
            merged.entropies += entropies
            for name, values in parts.items():
                merged.parts.setdefault(name, []).extend(values)
        return merged

    def metrics(self, clip: float, clip_high: float) -> dict[str, float]:
        """``train/...`` figures: means over all minibatches, and the drift of the first one."""
        log_ratio = torch.cat(self.log_ratios)
        figures = {f"train/{name}": torch.stack(values).sum() / self.minibatches for name, values in self.parts.items()}
        figures["train/entropy"] = torch.cat(self.entropies).mean()
        figures["train/approx_kl"] = mean_k3(log_ratio)
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


def advantage_metrics(batch: Batch, *, valued: bool) -> dict[str, float]:
    """Mean and deviation of advantages, and of returns where a critic learns them, before any whitening."""
    columns = {"advantage": batch.advantages, "return": batch.returns} if valued else {"advantage": batch.advantages}
    found: dict[str, Tensor] = {}
    for name, values in columns.items():
        found[f"train/{name}_mean"] = masked_mean(values, batch.mask)
        found[f"train/{name}_std"] = masked_var(values, batch.mask, unbiased=False).sqrt()
    if valued:
        found["train/explained_variance"] = explained_variance(batch.old_values, batch.returns, batch.mask)
    return _numbers(found)


def mean_k3(log_ratio: Tensor) -> Tensor:
    """The estimate of KL(pi_old || pi) from actions of pi_old, nats."""
    return k3(torch.zeros_like(log_ratio), log_ratio).mean()
