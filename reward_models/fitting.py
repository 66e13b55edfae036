"""The optimizer loop of supervised training: schedule, held-out loss, best and averaged weights, resumable state.

What a batch is, and how it fills the gradients, is the learner's: reward models in `reward_models.training`, language
models in `agents.recipes.sft`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from reward_models.weight_average import WeightAverage, put_back, trained_state

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


class TrainingDiverged(FloatingPointError):
    """A loss or its gradient is NaN or infinite."""


class MetricSink(Protocol):
    """Anything that takes named figures."""

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Keep ``metrics`` as of ``step``."""


class StepFigures(NamedTuple):
    """What one batch gave."""

    loss: float
    """Mean, nats."""
    count: int
    """Tokens read, or pairs compared."""


class Learner(Protocol):
    """What is trained, and on what."""

    @property
    def module(self) -> nn.Module:
        """Its parameters that require gradients are trained and kept."""

    def batches(self) -> Iterator[Any]:
        """An endless stream of batches; the same one at each call."""

    def gradient(self, batch: Any) -> StepFigures:
        """Add the gradient of the batch's mean loss to the parameters'."""

    def heldout_loss(self) -> float | None:
        """Mean loss of what is held out, nats; None if nothing is."""

    def fingerprint(self) -> int:
        """A checksum of the data, by which a saved state recognizes it."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit."""

    num_steps: int
    """Optimizer steps."""
    learning_rate: float
    """AdamW's peak step size."""
    warmup_share: float
    """Share of the steps in which the learning rate rises."""
    final_share: float
    """Learning rate at the end, as a share of the peak."""
    weight_decay: float
    """AdamW's, on matrices."""
    betas: tuple[float, float]
    """AdamW's."""
    max_grad_norm: float
    """Gradients are scaled down to this norm."""
    eval_every: int
    """Steps between evaluations."""
    checkpoint_every: int
    """Steps between checkpoints."""
    keep_best: bool
    """End with the weights of the least held-out loss, instead of the last."""
    average_decay: float | None = None
    """Decay a step of the weights' running average, which is then evaluated and kept. None: no average."""
    patience: int | None = None
    """Evaluations without a better held-out loss after which training stops. None: it does not."""
    evaluate_start: bool = True
    """Evaluate before the first step, too."""
    unit: str = "tokens"
    """What `StepFigures.count` counts."""


@dataclass
class Progress:
    """Where a fit stands: plain numbers that are saved with it."""

    step: int = 0
    count: int = 0
    """Tokens read, or pairs compared."""
    seconds: float = 0.0
    """Of the loop, evaluations and checkpoints included."""
    step_seconds: float = 0.0
    """Of optimizer steps alone."""
    first_loss: float | None = None
    """Held-out, first evaluation, nats."""
    last_loss: float | None = None
    """Held-out, newest evaluation."""
    last_step: int = -1
    """Step of the newest evaluation."""
    best_loss: float | None = None
    """Held-out, of the weights that are kept."""
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best."""


class Fit:
    """A training run that can be stopped after any step, saved, and resumed bit for bit.

    Args:
        learner: what is trained.
        options: how.
        sink: takes figures; None: they are dropped.
        groups: AdamW's parameter groups with the peak rate of each. None: the same rate for all, matrices decay.
        schedule: ``(step, options)`` to the share of the peak learning rate.
    """

    def __init__(
        self,
        learner: Learner,
        options: FitOptions,
        sink: MetricSink | None = None,
        *,
        groups: Sequence[dict[str, Any]] | None = None,
        schedule: Callable[[int, FitOptions], float] | None = None,
    ) -> None:
        self.learner, self.options, self.sink = learner, options, sink
        self.parameters = [p for p in learner.module.parameters() if p.requires_grad]
        if groups is not None:
            self.parameters = [p for group in groups for p in group["params"]]
        groups = decay_groups(self.parameters, options) if groups is None else list(groups)
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=True)
        self.optimizer.zero_grad()
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._schedule = warmup_cosine if schedule is None else schedule
        self.progress = Progress()
        self.history: list[tuple[int, float]] = []
        """``(step, held-out loss)`` of each evaluation since this object was made."""
        self.loss = math.nan
        """Of the newest step, nats."""
        self._fingerprint = learner.fingerprint()
        self._best: dict[str, Tensor] | None = None
        decay = options.average_decay
        self._average = None if decay is None else WeightAverage(learner.module, decay)

    def run(self, *, stopped: Callable[[], bool], checkpoint: Callable[[], object], show: Callable[[], object]) -> bool:
        """Train to the end, or until ``stopped`` between two steps; True if it was the end.

        Args:
            stopped: asked before every step.
            checkpoint: called every ``checkpoint_every`` steps, and at the end of a run that was stopped.
            show: called after every step.

        Raises:
            TrainingDiverged: if the loss or its gradient is not finite (the weights are then as before that step), or
                what is held out has no finite loss.
        """
        options, progress = self.options, self.progress
        began = time.perf_counter()
        if progress.last_step < 0 and options.evaluate_start:
            self.evaluate()
        for batch in islice(self.learner.batches(), progress.step, options.num_steps):
            if stopped() or self._out_of_patience:
                break
            figures = self._step(batch)
            due = progress.step % options.eval_every == 0 or progress.step == options.num_steps
            if due or progress.step % max(1, options.num_steps // LOG_LINES) == 0:
                self._log(figures | (self.evaluate(log=False) if due else {}))
            now = time.perf_counter()
            progress.seconds, began = progress.seconds + now - began, now
            show()
            if progress.step % options.checkpoint_every == 0 and progress.step < options.num_steps:
                checkpoint()
        finished = progress.step >= options.num_steps or self._out_of_patience
        if not finished:
            checkpoint()
        return finished

    @property
    def _out_of_patience(self) -> bool:
        return self.options.patience is not None and self.progress.stale >= self.options.patience

    def _log(self, figures: dict[str, float]) -> None:
        if self.sink is not None:
            self.sink.write(figures, self.progress.step)

    def _step(self, batch: Any) -> dict[str, float]:
        options, progress = self.options, self.progress
        began = time.perf_counter()
        factor = self._schedule(progress.step, options)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        loss, count = self.learner.gradient(batch)
        self.loss = loss
        norm = float(nn.utils.clip_grad_norm_(self.parameters, options.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"step {progress.step + 1}: the loss is {loss}, its gradient norm {norm}: lower the learning rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._average is not None:
            self._average.update(self.learner.module)
        progress.step += 1
        progress.count += count
        progress.step_seconds += time.perf_counter() - began
        return {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/learning_rate": options.learning_rate * factor,
            f"train/{options.unit}": float(progress.count),
            f"train/{options.unit}_per_s": progress.count / progress.step_seconds,
        }

    def evaluate(self, *, log: bool = True) -> dict[str, float]:
        """Evaluate on what is held out, and keep the weights if they are the best so far; returns the figures.

        Raises:
            TrainingDiverged: if the loss is not finite: nothing is less than NaN, so it would be kept as the best.
        """
        progress, module = self.progress, self.learner.module
        with nullcontext() if self._average is None else self._average.swapped_in(module):
            loss = self.learner.heldout_loss()
        progress.last_step = progress.step
        if loss is None:
            return {}
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"step {progress.step}: the held-out loss is {loss}: lower the learning rate, or, at step 0, look at "
                "the model that training starts from"
            )
        self.history.append((progress.step, loss))
        progress.last_loss = loss
        if progress.first_loss is None:
            progress.first_loss = loss
        progress.stale += 1
        if self.options.keep_best and (progress.best_loss is None or loss < progress.best_loss):
            progress.best_loss, progress.best_step, progress.stale = loss, progress.step, 0
            self._best = self._weights()
        figures = {"validation/loss": loss}
        if self.options.unit == "tokens":
            figures["validation/perplexity"] = perplexity_of(loss)
        if log:
            self._log(figures)
        return figures

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the weights that an evaluation sees."""
        if self._average is not None:
            return self._average.copy()
        return {name: value.clone() for name, value in trained_state(self.learner.module).items()}

    def settle(self) -> None:
        """End with the weights that are kept: the best, or the last.

        Raises:
            TrainingDiverged: as `evaluate`, if the last weights had not been evaluated.
        """
        progress = self.progress
        if progress.last_step != progress.step:
            self.evaluate(log=False)
        if self._best is None:
            progress.best_loss, progress.best_step = progress.last_loss, progress.step
        self.put_best()

    def put_best(self) -> None:
        """Give the module the best weights so far; without an evaluation, the average or the newest ones."""
        if self._best is not None or self._average is not None:
            put_back(self.learner.module, self._weights() if self._best is None else self._best)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training from here depends on."""
        return {
            "progress": dict(vars(self.progress)),
            "fingerprint": self._fingerprint,
            "module": trained_state(self.learner.module),
            "optimizer": self.optimizer.state_dict(),
            "best": self._best,
            "average": None if self._average is None else self._average.state_dict(),
            "generator": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: if it was of another model or of other data.
        """
        if state.get("fingerprint") != self._fingerprint:
            raise ValueError("the checkpoint is of a run on other data: the files have changed since it began")
        try:
            wrong = state["module"].keys() ^ trained_state(self.learner.module).keys()
            if wrong:
                raise ValueError(f"other weights are trained here: {', '.join(sorted(wrong)[:4])}")
            put_back(self.learner.module, state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the checkpoint does not fit this run: {error}") from error
        self._best = state["best"]
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        torch.set_rng_state(state["generator"])


def decay_groups(parameters: list[nn.Parameter], options: FitOptions) -> list[dict[str, Any]]:
    """AdamW's parameter groups: weight decay falls on matrices alone."""
    matrices = [p for p in parameters if p.ndim == 2]
    others = [p for p in parameters if p.ndim != 2]
    return [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]


def warmup_cosine(step: int, options: FitOptions) -> float:
    """Share of the peak learning rate at ``step``: up linearly at first, then by a cosine down to ``final_share``."""
    warmup = max(1, math.floor(options.warmup_share * options.num_steps + 1e-9))
    cosine = 0.5 * (1 + math.cos(math.pi * step / options.num_steps))
    return min(1.0, (step + 1) / warmup) * (options.final_share + (1 - options.final_share) * cosine)


def warmup_linear(step: int, options: FitOptions) -> float:
    """Share of the peak learning rate at ``step``: up linearly, then down linearly to 0; never below."""
    progress, warmup = step / options.num_steps, options.warmup_share
    rising = progress / warmup if warmup else 1.0
    return max(0.0, min(rising + 1e-3, (1 - progress) / (1 - warmup) if warmup < 1 else 1.0))


def perplexity_of(loss: float) -> float:
    """exp of nats per token; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf
