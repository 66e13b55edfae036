"""Where figures go: Stable-Baselines3's logger (CSV, TensorBoard, terminal), and what each figure means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from reward_models.fit_options import MetricSink as MetricSink

METRICS: dict[str, str] = {
    "rollout/return_mean": "mean undiscounted return of the last 100 finished episodes, reward units, never normalized",
    "rollout/length_mean": "mean length of the last 100 finished episodes, steps",
    "rollout/episodes": "episodes finished since training began",
    "train/loss": "L_policy + value_coef L_value + entropy_coef L_entropy, mean over the update's minibatches",
    "train/policy_loss": "-mean min(r A, clip(r, 1 - eps, 1 + eps) A), r = exp(log pi - log pi_old); or policy_loss's",
    "train/value_loss": "mean (V - R)^2 / 2 (or its clipped form), squared reward units",
    "train/entropy": "mean entropy of the policy, nats per step",
    "train/approx_kl": "mean exp(x) - 1 - x with x = log pi - log pi_old over the whole update: KL(pi_old||pi), nats",
    "train/logprob_drift": "mean |log pi - log pi as sampled| of what is judged before the first step, nats: rounding",
    "train/clip_fraction": "share of steps (GSPO: texts) with r outside [1 - eps, 1 + eps (or clip_high)], [0, 1]",
    "train/ratio_mean": "mean of r over the whole update; its expectation under the policy that acted is 1",
    "train/ratio_max": "largest r of the whole update: how far the worst step ran from the policy that acted",
    "train/advantage_mean": "mean of A over the batch, before any whitening, reward units",
    "train/advantage_std": "its standard deviation, reward units",
    "train/return_mean": "mean of R, what the critic learns, over the batch's steps, reward units",
    "train/return_std": "its standard deviation, reward units",
    "train/grad_norm": "mean Euclidean norm of the gradient before it is clipped",
    "train/kl": "TRPO: exact mean KL(pi_old||pi) of the step that was taken, over the batch's states, nats; 0 if none",
    "train/surrogate_gain": "TRPO: mean r A after the step minus before, r = exp(log pi - log pi_old); 0 if none",
    "train/line_search_tries": "TRPO: step lengths tried until one was accepted; 0 if none was",
    "train/cg_residual": "TRPO: |g - (F + damping) x| / |g| that conjugate gradients left",
    "train/explained_variance": "1 - Var(R - V_old) / Var(R): 1 is a perfect critic, 0 one that knows the mean only",
    "train/early_stop": "1 where target_kl ended this update early, else 0",
    "train/learning_rate": "Adam's step size in this update",
    "train/clip": "eps in this update",
    "train/updates": "updates since training began",
    "time/steps": "transitions (or rows, for text) since training began",
    "time/steps_per_second": "transitions (or rows) of this iteration / its seconds",
    "time/seconds_per_update": "seconds of this iteration, rollout and update",
    "time/collect_share": "share of this iteration's seconds spent collecting, [0, 1]",
    "eval/return_mean": "mean return of greedy episodes, reward units",
    "eval/return_std": "standard deviation of those returns",
}
"""Every figure the core logs, with its formula and unit."""


class ClosableSink(MetricSink, Protocol):
    """A sink with an end."""

    def close(self) -> None:
        """Flush and end."""
        ...


class NullSink:
    """Keeps nothing."""

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Do nothing."""


def as_sink(logger: MetricSink | None) -> MetricSink:
    """``logger``, or for None a `NullSink`; ValueError for what has no ``write``."""
    if logger is not None and not callable(getattr(logger, "write", None)):
        raise ValueError(f"logger: expected a sink such as FileSink(folder), received {logger!r}")
    return logger or NullSink()


class FileSink:
    """Stable-Baselines3's logger over a folder; every line has its step, evaluations included.

    Args:
        folder: made if it is missing.
        formats: of "csv", "tensorboard", "stdout", "json", "log".
        resume_at: continue the files of a run that was stopped, as of this step; None begins anew.
        trackers: further sinks that receive the same lines and are closed with this one.
    """

    def __init__(
        self,
        folder: str | Path,
        formats: Sequence[str] = ("csv", "tensorboard"),
        *,
        resume_at: int | None = None,
        trackers: Sequence[ClosableSink] = (),
    ) -> None:
        from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat, make_output_format

        from agents.runs.progress_csv import ProgressCSV

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        outputs: list[Any] = [make_output_format(name, str(folder)) for name in formats if name != "csv"]
        if "csv" in formats:
            outputs.append(ProgressCSV(folder / "progress.csv", resume_at=resume_at))
        for output in outputs:
            if resume_at is not None and isinstance(output, TensorBoardOutputFormat):
                # Tells TensorBoard to forget what the stopped run wrote after its checkpoint.
                output.writer.close()
                output.writer = type(output.writer)(log_dir=str(folder), purge_step=resume_at + 1)
        self._logger: Any = Logger(str(folder), outputs)
        self._trackers = tuple(trackers)

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Write one line."""
        line = {"time/steps": float(step), **metrics}
        for name, value in line.items():
            self._logger.record(name, value)
        self._logger.dump(step)
        for tracker in self._trackers:
            tracker.write(line, step)

    def write_samples(self, prompts: Sequence[str], completions: Sequence[str], step: int) -> None:
        """Show a few texts in TensorBoard, each prompt set apart by a bar."""
        texts = [f"{prompt} |{completion}" for prompt, completion in zip(prompts, completions, strict=True)]
        for output in self._logger.output_formats:
            if texts and hasattr(output, "writer"):
                output.writer.add_text("samples", "\n\n".join(texts), step)

    def close(self) -> None:
        """Flush and close the files."""
        self._logger.close()
        for tracker in self._trackers:
            tracker.close()
