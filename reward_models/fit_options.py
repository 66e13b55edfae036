"""What the optimizer loop of `reward_models.fitting` is built from: options, protocols, progress and schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from torch import nn

Batch = TypeVar("Batch")


class MetricSink(Protocol):
    """Anything that takes named metrics."""

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Keep ``metrics`` as of ``step``."""


class StepResult(NamedTuple):
    """The loss of one batch and its size."""

    loss: float  # mean, nats
    size: int  # tokens read, or pairs compared


class Learner(Protocol[Batch]):
    """A module with its training and held-out data."""

    @property
    def module(self) -> nn.Module:
        """Its parameters that require gradients are trained and kept."""

    def batches(self) -> Iterator[Batch]:
        """An endless stream of batches; the same one at each call."""

    def gradient(self, batch: Batch) -> StepResult:
        """Add the gradient of the batch's mean loss to the parameters'."""

    def heldout_loss(self) -> float | None:
        """Mean held-out loss, nats; None without held-out data."""

    def fingerprint(self) -> int:
        """A checksum of the data, compared when a saved state is loaded."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Settings of the optimizer loop."""

    num_steps: int  # optimizer steps
    learning_rate: float  # AdamW's peak step size
    warmup_share: float  # share of the steps in which the learning rate rises
    final_share: float  # learning rate at the end, as a share of the peak
    weight_decay: float  # AdamW's, on matrices
    betas: tuple[float, float]  # AdamW's
    max_grad_norm: float  # gradients are scaled down to this norm
    eval_every: int  # steps between evaluations
    checkpoint_every: int  # steps between checkpoints
    keep_best: bool  # end with the weights of the least held-out loss, instead of the last
    average_decay: float | None = None  # of the weights' running average, which is evaluated and kept; None: no average
    patience: int | None = None  # evaluations without a better loss until training stops; None: no early stop
    evaluate_start: bool = True  # evaluate before the first step, too
    unit: str = "tokens"  # what `StepResult.size` counts


@dataclass
class Progress:
    """Progress of a fit: plain numbers that are saved with it."""

    step: int = 0
    count: int = 0  # tokens read, or pairs compared
    seconds: float = 0.0  # of the loop, evaluations and checkpoints included
    step_seconds: float = 0.0  # of optimizer steps alone
    first_loss: float | None = None  # held-out, first evaluation, nats
    last_loss: float | None = None  # held-out, newest evaluation
    last_step: int = -1  # step of the newest evaluation
    best_loss: float | None = None  # held-out, of the weights that are kept
    best_step: int = 0
    stale: int = 0  # evaluations since the best


def warmup_cosine(step: int, options: FitOptions) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then a cosine down to ``final_share``."""
    warmup = max(1, math.floor(options.warmup_share * options.num_steps + 1e-9))
    cosine = 0.5 * (1 + math.cos(math.pi * step / options.num_steps))
    return min(1.0, (step + 1) / warmup) * (options.final_share + (1 - options.final_share) * cosine)


def warmup_linear(step: int, options: FitOptions) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then linear decay to 0; never negative."""
    progress, warmup = step / options.num_steps, options.warmup_share
    rising = progress / warmup if warmup else 1.0
    return max(0.0, min(rising + 1e-3, (1 - progress) / (1 - warmup) if warmup < 1 else 1.0))
