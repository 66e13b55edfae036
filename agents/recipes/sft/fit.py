"""The optimizer loop of language models: schedule, held-out figures, the best weights, and a state to resume from.

What a batch is, and how it fills the gradients, is the learner's: `agents.recipes.sft.from_scratch` and
`agents.recipes.sft.loss`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from agents.runs.checkpoint import CheckpointError
from agents.runs.logging import MetricSink

METRICS: dict[str, str] = {
    "train/loss": "negative log-likelihood of the step's learned tokens, mean over the whole batch, nats per token",
    "train/grad_norm": "Euclidean norm of the gradient before it is clipped",
    "train/learning_rate": "AdamW's step size in this step",
    "train/tokens": "tokens read since training began, prompts and repeats included",
    "train/tokens_per_s": "tokens read since training began / seconds of the steps alone",
    "validation/loss": "mean negative log-likelihood of the held-out rows' learned tokens, nats per token",
    "validation/perplexity": "exp of validation/loss",
}
"""Every figure that the loop logs; a step (`time/steps`) is an optimizer step."""
LOG_LINES = 200
"""About so many lines a run; a line for every evaluation in any case."""


class StepFigures(NamedTuple):
    """What one batch gave."""

    loss: float
    """Nats per learned token."""
    tokens: int
    """Tokens read."""


class Learner(Protocol):
    """What is trained, and on what."""

    @property
    def module(self) -> nn.Module:
        """Whose ``state_dict`` is kept; the parameters of it that require gradients are trained."""
        ...

    def batches(self) -> Iterator[Any]:
        """An endless stream of batches; the same one at each call."""
        ...

    def gradient(self, batch: Any) -> StepFigures:
        """Add the gradient of the batch's mean loss to the parameters'."""
        ...

    def heldout_loss(self) -> float | None:
        """Nats per token of what is held out; None if nothing is."""
        ...

    def fingerprint(self) -> int:
        """A checksum of the data, by which a saved state recognizes it."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit; see `agents.recipes.sft.config` for units."""

    num_steps: int
    learning_rate: float
    warmup_share: float
    final_share: float
    weight_decay: float
    betas: tuple[float, float]
    """AdamW's."""
    max_grad_norm: float
    eval_every: int
    checkpoint_every: int
    keep_best: bool


@dataclass
class Progress:
    """Where a fit stands: plain numbers that are saved with it."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Of the loop, evaluations and checkpoints included."""
    step_seconds: float = 0.0
    """Of optimizer steps alone."""
    first_loss: float | None = None
    """Held-out, before the first step, nats per token."""
    last_loss: float | None = None
    """Held-out, newest evaluation."""
    last_step: int = -1
    """Step of the newest evaluation."""
    best_loss: float | None = None
    """Held-out, of the weights that are kept."""
    best_step: int = 0


class Fit:
    """A training run that can be stopped after any step, saved, and gone on with bit for bit.

    Args:
        learner: what is trained.
        options: how.
        sink: where figures go.
    """

    def __init__(self, learner: Learner, options: FitOptions, sink: MetricSink) -> None:
        self.learner, self.options, self.sink = learner, options, sink
        self.parameters = [p for p in learner.module.parameters() if p.requires_grad]
        self.optimizer = new_optimizer(self.parameters, options)
        self.progress = Progress()
        self._fingerprint = learner.fingerprint()
        self._best: dict[str, Tensor] | None = None

    def run(self, *, stopped: Callable[[], bool], checkpoint: Callable[[], object], show: Callable[[], object]) -> bool:
        """Train to the end, or until ``stopped`` between two steps; whether it was the end.

        Args:
            stopped: asked before every step.
            checkpoint: called every ``checkpoint_every`` steps, and at the end of a run that was stopped.
            show: called after every step.

        Raises:
            FloatingPointError: if the loss or its gradient is not finite (the weights are then as before that step), or
                what is held out has no finite loss.
        """
        options, progress = self.options, self.progress
        began = time.perf_counter()
        if progress.last_step < 0:
            self.evaluate()
        for batch in islice(self.learner.batches(), progress.step, options.num_steps):
            if stopped():
                break
            figures = self._step(batch)
            due = progress.step % options.eval_every == 0 or progress.step == options.num_steps
            if due or progress.step % max(1, options.num_steps // LOG_LINES) == 0:
                self.sink.write(figures | (self.evaluate(log=False) if due else {}), progress.step)
            now = time.perf_counter()
            progress.seconds, began = progress.seconds + now - began, now
            show()
            if progress.step % options.checkpoint_every == 0 and progress.step < options.num_steps:
                checkpoint()
        finished = progress.step >= options.num_steps
        if not finished:
            checkpoint()
        return finished

    def _step(self, batch: Any) -> dict[str, float]:
        options, progress = self.options, self.progress
        began = time.perf_counter()
        factor = learning_rate_factor(
            progress.step, options.num_steps, warmup_share=options.warmup_share, final_share=options.final_share
        )
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        loss, tokens = self.learner.gradient(batch)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, options.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"step {progress.step + 1}: the loss is {loss}, its gradient norm {norm}: lower the learning rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        progress.tokens += tokens
        progress.step_seconds += time.perf_counter() - began
        return {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/learning_rate": options.learning_rate * factor,
            "train/tokens": float(progress.tokens),
            "train/tokens_per_s": progress.tokens / progress.step_seconds,
        }

    def evaluate(self, *, log: bool = True) -> dict[str, float]:
        """Look at what is held out, and keep the weights if they are the best so far; the figures.

        Raises:
            FloatingPointError: if the loss is not finite: nothing is less than NaN, so it would be kept as the best.
        """
        progress, loss = self.progress, self.learner.heldout_loss()
        progress.last_step = progress.step
        if loss is None:
            return {}
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"step {progress.step}: the held-out loss is {loss}: lower the learning rate, or, at step 0, look at "
                "the model that training starts from"
            )
        progress.last_loss = loss
        if progress.first_loss is None:
            progress.first_loss = loss
        if self.options.keep_best and (progress.best_loss is None or loss < progress.best_loss):
            progress.best_loss, progress.best_step = loss, progress.step
            self._best = {name: value.clone() for name, value in self.learner.module.state_dict().items()}
        figures = {"validation/loss": loss, "validation/perplexity": perplexity_of(loss)}
        if log:
            self.sink.write(figures, progress.step)
        return figures

    def settle(self) -> None:
        """End with the weights that are kept: the best, or the last.

        Raises:
            FloatingPointError: as `evaluate`, if the last weights had not been looked at.
        """
        progress = self.progress
        if progress.last_step != progress.step:
            self.evaluate(log=False)
        if self._best is not None:
            self.learner.module.load_state_dict(self._best)
        else:
            progress.best_loss, progress.best_step = progress.last_loss, progress.step

    def state_dict(self) -> dict[str, Any]:
        """Everything that training from here depends on."""
        return {
            "progress": dict(vars(self.progress)),
            "fingerprint": self._fingerprint,
            "module": dict(self.learner.module.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "best": self._best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            CheckpointError: if it was of another model or of other data.
        """
        if state.get("fingerprint") != self._fingerprint:
            raise CheckpointError("the checkpoint is of a run on other data: the files have changed since it began")
        try:
            self.learner.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run: {error}") from error
        self._best = state["best"]


def new_optimizer(parameters: list[nn.Parameter], options: FitOptions) -> torch.optim.Optimizer:
    """AdamW whose weight decay falls on matrices alone."""
    matrices = [p for p in parameters if p.ndim == 2]
    others = [p for p in parameters if p.ndim != 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=options.betas,
        fused=True,
    )


def learning_rate_factor(step: int, num_steps: int, *, warmup_share: float, final_share: float) -> float:
    """Share of the peak learning rate at ``step``: up linearly at first, then by a cosine down to ``final_share``."""
    warmup = max(1, math.floor(warmup_share * num_steps + 1e-9))
    cosine = final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return min(1.0, (step + 1) / warmup) * cosine


def perplexity_of(loss: float) -> float:
    """exp of nats per token; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf
