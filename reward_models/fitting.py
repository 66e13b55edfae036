"""The optimizer loop of supervised training: schedule, held-out loss, best and averaged weights, resumable state.

Learners: reward models in `reward_models.training`, language models in `agents.recipes.sft`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from reward_models.fit_options import FitOptions, Learner, MetricSink, Progress, warmup_cosine
from reward_models.gradients import clip_gradient

METRICS: dict[str, str] = {
    "train/loss": "negative log-likelihood of the step's learned tokens, mean over the whole batch, nats per token",
    "train/grad_norm": "Euclidean norm of the gradient before it is clipped",
    "train/learning_rate": "AdamW's step size in this step",
    "train/tokens": "tokens read since training began, prompts and repeats included",
    "train/tokens_per_s": "tokens read since training began / seconds of the steps alone",
    "validation/loss": "mean negative log-likelihood of the held-out rows' learned tokens, nats per token",
    "validation/perplexity": "exp of validation/loss",
}
"""Every metric that the loop logs; a step (`time/steps`) is an optimizer step."""
LOG_LINES = 200
"""Approximate number of logged lines a run; every evaluation is logged in any case."""


class TrainingDiverged(FloatingPointError):
    """A loss or its gradient is NaN or infinite."""


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without its frozen parameters, which never change and may be shared."""
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


class WeightAverage:
    """Exponential running average of a model's trained weights; early steps use a smaller decay, against bias.

    ``decay`` is the share of the average that a step keeps, in [0, 1]; 0 follows the newest weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count, self.mean = decay, 0, _copy(trained_state(model))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Include the model's current weights."""
        self.count += 1
        decay = min(self.decay, (self.count - 1) / (self.count + 9)) if self.decay else 0.0
        state = trained_state(model)
        own = [self.mean[name] for name in state if state[name].is_floating_point()]
        theirs = [tensor.detach() for tensor in state.values() if tensor.is_floating_point()]
        torch._foreach_lerp_(own, theirs, 1 - decay)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model has the averaged weights."""
        own = _copy(trained_state(model))
        model.load_state_dict(self.mean, strict=False)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)


class Fit:
    """A training run that can be stopped after any step, saved, and resumed bit for bit.

    Metrics go to ``sink``, if there is one. ``groups`` are AdamW's parameter groups with the peak rate of each; None:
    the same rate for all, matrices decay. ``schedule(step, options)`` is the share of the peak learning rate.
    """

    def __init__(
        self,
        learner: Learner[Any],
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
        """Train to the end, or until ``stopped`` returns True before a step; return whether training is complete.

        ``checkpoint`` is called every ``checkpoint_every`` steps, and if stopped; ``show`` after every step.

        Raises:
            TrainingDiverged: the loss or its gradient is not finite (the weights are then as before that step), or
                the held-out loss is not.
        """
        options, progress = self.options, self.progress
        began = time.perf_counter()
        if progress.last_step < 0 and options.evaluate_start:
            self.evaluate()
        for batch in islice(self.learner.batches(), progress.step, options.num_steps):
            if stopped() or self._out_of_patience:
                break
            metrics = self._step(batch)
            due = progress.step % options.eval_every == 0 or progress.step == options.num_steps
            if due or progress.step % max(1, options.num_steps // LOG_LINES) == 0:
                self._log(metrics | (self.evaluate(log=False) if due else {}))
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

    def _log(self, metrics: dict[str, float]) -> None:
        if self.sink is not None:
            self.sink.write(metrics, self.progress.step)

    def _step(self, batch: Any) -> dict[str, float]:
        options, progress = self.options, self.progress
        began = time.perf_counter()
        factor = self._schedule(progress.step, options)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        loss, count = self.learner.gradient(batch)
        self.loss = loss
        norm = float(clip_gradient(self.parameters, options.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"step {progress.step + 1}: expected a finite loss and gradient norm, received {loss} and {norm}: "
                "lower the learning rate"
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
        """Evaluate on the held-out data, keep the weights if they are the best so far, and return the metrics.

        Raises:
            TrainingDiverged: the loss is not finite: nothing is less than NaN, so it would be kept as the best.
        """
        progress, module = self.progress, self.learner.module
        with nullcontext() if self._average is None else self._average.swapped_in(module):
            loss = self.learner.heldout_loss()
        progress.last_step = progress.step
        if loss is None:
            return {}
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"step {progress.step}: expected a finite held-out loss, received {loss}: lower the learning rate, or, "
                "at step 0, check the model that training starts from"
            )
        self.history.append((progress.step, loss))
        progress.last_loss = loss
        if progress.first_loss is None:
            progress.first_loss = loss
        progress.stale += 1
        if self.options.keep_best and (progress.best_loss is None or loss < progress.best_loss):
            progress.best_loss, progress.best_step, progress.stale = loss, progress.step, 0
            self._best = self._weights()
        metrics = {"validation/loss": loss}
        if self.options.unit == "tokens":
            metrics["validation/perplexity"] = perplexity_of(loss)
        if log:
            self._log(metrics)
        return metrics

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the weights that an evaluation uses."""
        return _copy(trained_state(self.learner.module) if self._average is None else self._average.mean)

    def settle(self) -> None:
        """End with the weights that are kept: the best, or the last.

        Raises:
            TrainingDiverged: as `evaluate`, which runs if the last weights were not evaluated.
        """
        progress = self.progress
        if progress.last_step != progress.step:
            self.evaluate(log=False)
        if self._best is None:
            progress.best_loss, progress.best_step = progress.last_loss, progress.step
        self.put_best()

    def put_best(self) -> None:
        """Load the best weights so far into the module; without an evaluation, the average or the newest ones."""
        if self._best is not None or self._average is not None:
            weights = self._weights() if self._best is None else self._best
            self.learner.module.load_state_dict(weights, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training from here depends on."""
        average = self._average
        return {
            "progress": dict(vars(self.progress)),
            "fingerprint": self._fingerprint,
            "module": trained_state(self.learner.module),
            "optimizer": self.optimizer.state_dict(),
            "best": self._best,
            "average": None if average is None else {"count": average.count, "mean": _copy(average.mean)},
            "generator": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; ValueError if the state belongs to another model or to other data."""
        if state.get("fingerprint") != self._fingerprint:
            raise ValueError("the checkpoint belongs to a run on other data: the files have changed since it began")
        try:
            wrong = state["module"].keys() ^ trained_state(self.learner.module).keys()
            if wrong:
                raise ValueError(f"expected the same trained weights, received a difference in {sorted(wrong)[:4]}")
            self.learner.module.load_state_dict(state["module"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the checkpoint does not fit this run: {error}") from error
        self._best = state["best"]
        if self._average is not None:
            self._average.count, self._average.mean = state["average"]["count"], _copy(state["average"]["mean"])
        torch.set_rng_state(state["generator"])


def decay_groups(parameters: list[nn.Parameter], options: FitOptions) -> list[dict[str, Any]]:
    """AdamW's parameter groups: only matrices decay."""
    matrices = [p for p in parameters if p.ndim == 2]
    others = [p for p in parameters if p.ndim != 2]
    return [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]


def perplexity_of(loss: float) -> float:
    """exp of nats per token; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf
