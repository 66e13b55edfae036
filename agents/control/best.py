"""A callback that evaluates an agent periodically, keeps the best weights, and can stop training early."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from agents.agent import Agent
from agents.control.evaluation import evaluate
from agents.control.normalize import ObservationNormalizer

STATE = (
    "best_mean", "best_steps", "last_steps", "best_policy", "best_normalizer", "seconds", "cpu_seconds", "reached"
)  # fmt: skip
"""What ``BestKeeper`` saves under its own name."""


class BestKeeper:
    """A callback for ``PPO.learn``: greedy evaluations in environments of its own.

    The best weights have the highest mean return; of equal ones, the later are kept, as they come from more experience.
    Evaluation leaves the agent's training state unchanged.

    Args:
        envs: for evaluation only.
        every: steps between evaluations, >= 1.
        episodes: per evaluation, >= 1.
        seed: seed of each evaluation's first reset.
        stop_at_return: end the training once an evaluation's mean reaches this, reward units.
        on_best: called with the agent whenever it is the best so far (to save it, for instance).
    """

    def __init__(
        self, envs: VectorEnv, *, every: int, episodes: int = 100, seed: int = 0, stop_at_return: float | None = None,
        on_best: Callable[[Agent], object] | None = None,
    ) -> None:  # fmt: skip
        if every < 1 or episodes < 1:
            raise ValueError(f"every and episodes: expected 1 or more, received {every} and {episodes}")
        self.envs, self.every, self.episodes, self.seed = envs, every, episodes, seed
        self.stop_at_return, self.on_best = stop_at_return, on_best
        self.best_mean, self.best_steps, self.last_steps = -math.inf, 0, -1
        self.best_policy: dict[str, Any] | None = None
        self.best_normalizer: dict[str, Any] | None = None
        self.reached = False
        self.seconds = self.cpu_seconds = 0.0
        self._due: int | None = None

    def __call__(self, agent: Agent) -> bool:
        """Evaluate when due; False once ``stop_at_return`` is reached."""
        if self._due is None:
            self._due = self.every * math.ceil(agent.steps / self.every)
        if agent.steps < self._due:
            return True
        self._due = self.every * (agent.steps // self.every + 1)
        return self.evaluate(agent)

    def evaluate(self, agent: Agent) -> bool:
        """Evaluate now; False once ``stop_at_return`` is reached."""
        began, began_cpu = time.perf_counter(), time.process_time()
        returns, _ = evaluate(agent, self.envs, self.episodes, seed=self.seed)
        self.last_steps = agent.steps
        mean, std = float(returns.mean()), float(returns.std())
        metrics = {"eval/return_mean": mean, "eval/return_std": std, "time/steps": float(agent.steps)}
        agent.logger.write(metrics, agent.steps)
        if mean >= self.best_mean:
            self.best_mean, self.best_steps = mean, agent.steps
            self.best_policy = {name: value.clone() for name, value in agent.policy.state_dict().items()}
            normalizer = getattr(agent.collector, "normalizer", None)
            self.best_normalizer = None if normalizer is None else normalizer.state_dict()
            if self.on_best is not None:
                self.on_best(agent)
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - began_cpu
        self.reached = self.stop_at_return is not None and mean >= self.stop_at_return
        return not self.reached

    def restore_best(self, agent: Agent) -> None:
        """Load the best weights and their normalization statistics into ``agent``; no-op before any evaluation."""
        if self.best_policy is None:
            return
        with torch.no_grad():
            agent.policy.load_state_dict(self.best_policy)
        if self.best_normalizer is not None:
            normalizer: ObservationNormalizer = getattr(agent.collector, "normalizer")  # noqa: B009 (not in the protocol)
            normalizer.load_state_dict(self.best_normalizer)

    def state_dict(self) -> dict[str, Any]:
        """Exact state, the best weights included."""
        return {name: getattr(self, name) for name in STATE} | {"due": self._due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from ``state_dict``."""
        for name in STATE:
            setattr(self, name, state[name])
        self._due = state["due"]
