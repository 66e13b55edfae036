"""What every agent here shares: collect, judge, improve, repeat; and ``learn``, ``predict``, ``save``, ``load``.

How a batch improves the policy is not here: see ``agents.control.ppo`` and ``agents.control.trpo``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from agents.functional.advantages import generalized_advantages
from agents.interfaces import Collector
from agents.rollout import Batch, Rollout
from agents.runs import checkpoint
from agents.runs.logging import MetricSink, NullSink

Callback = Callable[[Any], "bool | None"]
"""Called with the agent after every update; returning False ends ``learn``."""
Self = TypeVar("Self", bound="Agent")


class Agent:
    """The life of an agent; a subclass says in ``update`` what it learns from a batch.

    It is given everything that knows an environment: ``agents.control.agent`` builds policy and collector for Gymnasium
    spaces, ``agents.text.agent`` is handed those of a language model.

    Args:
        config: see ``agents.config``.
        policy: any module that implements ``agents.interfaces.Policy``.
        collector: source of rollouts; None for an agent that only predicts.
        generator: of minibatches, and of whatever the collector draws if it was given the same one.
        logger: receives metrics; see ``agents.runs.logging``.
    """

    config_type: ClassVar[type[Any]]
    """Settings: an ``AgentConfig``."""
    algorithm: ClassVar[str]
    """Name in checkpoints: one algorithm's are refused by another."""

    def __init__(
        self,
        config: Any,
        policy: Any,
        collector: Collector | None,
        *,
        generator: torch.Generator | None = None,
        logger: MetricSink | None = None,
    ) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed) if generator is None else generator
        self.predict_generator = torch.Generator().manual_seed(config.seed + 1)
        self.policy = policy
        self.policy.to(config.device)
        self.collector = collector
        self.learner, self.optimizer = self._learning_parts()
        self.logger: MetricSink = logger or NullSink()
        self.metrics: dict[str, float] = {}
        self.steps = 0
        self.updates = 0
        self.span = (0, 0)

    def _learning_parts(self) -> tuple[Any, torch.optim.Optimizer]:
        """What acts and is trained (the policy, or a faster form of it), and the optimizer of its parameters."""
        raise NotImplementedError

    def update(self, batch: Batch) -> dict[str, float]:
        """Learn from ``batch``; the figures to log. ``progress`` is still that of the rollout's beginning."""
        raise NotImplementedError

    @property
    def progress(self) -> float:
        """Share of the current ``learn`` that is done, [0, 1]; schedules follow it."""
        start, end = self.span
        return 0.0 if end <= start else min((self.steps - start) / (end - start), 1.0)

    def learn(
        self: Self, total_steps: int | None = None, callback: Callback | None = None, log_interval: int = 1
    ) -> Self:
        """Train for ``total_steps`` more steps (to the end of the last rollout that is needed).

        Args:
            total_steps: transitions, or rows where the collector counts those. None goes on with a ``learn`` that was
                interrupted, to the end it had: its schedules then continue as if nothing had happened.
            callback: called with the agent after every update; returning False ends the training early.
            log_interval: updates between two lines of the logger.

        Returns:
            The agent itself.

        Raises:
            ValueError: if there is nothing to learn in, or nothing to go on with.
        """
        if self.collector is None:
            raise ValueError("this agent has no environment: pass one to load(path, env=...)")
        if total_steps is not None:
            if total_steps < 1:
                raise ValueError(f"total_steps must be at least 1, received {total_steps}")
            self.span = (self.steps, self.steps + total_steps)
        elif self.span == (0, 0):
            raise ValueError("there is no interrupted training to go on with: pass total_steps")
        while self.steps < self.span[1]:
            began = time.perf_counter()
            self.iterate()
            self.metrics["time/seconds_per_update"] = time.perf_counter() - began
            if self.updates % log_interval == 0:
                self.logger.write(self.metrics, self.steps)
            should_continue = None if callback is None else callback(self)
            if should_continue is not None and not should_continue:  # numpy's False is not the object False
                break
        return self

    def iterate(self) -> None:
        """One rollout and the update that follows from it."""
        assert self.collector is not None
        began = time.perf_counter()
        rollout, metrics = self.collector.collect(self.learner)
        collected = time.perf_counter()
        figures = self.update(self.compute_advantages(rollout))
        steps = rollout.num_rows if self.collector.counts == "rows" else rollout.num_steps
        self.steps += steps
        self.updates += 1
        finished = time.perf_counter()
        self.metrics = {
            **metrics,
            **figures,
            "train/updates": float(self.updates),
            "time/steps": float(self.steps),
            "time/collect_share": (collected - began) / (finished - began),
            "time/steps_per_second": steps / (finished - began),
        }

    def compute_advantages(self, rollout: Rollout) -> Batch:
        """Advantages and returns for a rollout, by GAE."""
        return rollout.to_batch(
            generalized_advantages(
                rollout.rewards,
                rollout.values,
                rollout.next_values,
                rollout.terminated,
                rollout.ended,
                gamma=self.config.gamma,
                lam=self.config.lam,
                mask=rollout.mask,
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that training from here depends on."""
        return {
            "algorithm": self.algorithm,
            "config": self.config.to_dict(),
            "policy": dict(self.policy.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "collector": None if self.collector is None else self.collector.state_dict(),
            "generators": {"learn": self.generator.get_state(), "predict": self.predict_generator.get_state()},
            "progress": {"steps": self.steps, "updates": self.updates, "span": list(self.span)},
        }

    @classmethod
    def _refuse_other(cls, state: dict[str, Any]) -> None:
        if state["algorithm"] != cls.algorithm:
            raise checkpoint.CheckpointError(f"the checkpoint is of {state['algorithm']!r}, not {cls.algorithm!r}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the agent that ``state`` was taken from.

        Raises:
            CheckpointError: if it was of another algorithm or configuration; the message names the fields.
        """
        self._refuse_other(state)
        ours = self.config.to_dict()
        other = {name: value for name, value in state["config"].items() if _plain(value) != _plain(ours.get(name))}
        if other:
            there = ", ".join(f"{name}={value!r} (here {ours.get(name)!r})" for name, value in other.items())
            raise checkpoint.CheckpointError(f"the checkpoint is of another configuration: {there}")
        try:
            self.policy.load_state_dict(state["policy"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.collector is not None and state["collector"] is not None:
                self.collector.load_state_dict(state["collector"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise checkpoint.CheckpointError(f"the checkpoint does not fit this agent: {error}") from error
        self.generator.set_state(state["generators"]["learn"])
        self.predict_generator.set_state(state["generators"]["predict"])
        progress = state["progress"]
        self.steps, self.updates = progress["steps"], progress["updates"]
        self.span = (progress["span"][0], progress["span"][1])

    def save(self, path: str | Path) -> Path:
        """Write the whole agent to one file, from which training resumes bit for bit (see
        ``agents.runs.checkpoint``)."""
        return checkpoint.save(path, self.state_dict())

    def restore(self: Self, path: str | Path) -> Self:
        """Become the agent saved at ``path``, which must have this one's configuration.

        Raises:
            CheckpointError: if the file is missing, damaged, or of another version or configuration.
        """
        self.load_state_dict(checkpoint.load(path))
        return self


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
