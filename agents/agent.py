"""The loop that all agents share: collect a rollout, compute advantages, update; and ``learn``, ``save``, ``load``.
How a batch updates the policy is not here: see ``agents.control`` and ``agents.text``.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from agents.callbacks import called
from agents.callbacks import progress_bar as bar_of
from agents.config import AgentConfig
from agents.functional.advantages import generalized_advantages
from agents.functional.schedules import Linear
from agents.interfaces import Collector, Policy
from agents.rollout import Batch, Rollout
from agents.runs import checkpoint
from agents.runs.devices import check_device
from agents.runs.distributed import is_sharded
from agents.runs.flags import NEUTRAL
from agents.runs.logging import MetricSink, as_sink
from agents.update import Objective, own_objective

Self = TypeVar("Self", bound="Agent")
EnvLike = str | gym.Env[Any, Any] | VectorEnv[Any, Any, Any]
"""An id, an environment or a vector environment."""


class Agent:
    """The training loop; a subclass implements ``update``, ``predict`` and ``from_state``.

    It is given everything that knows an environment: ``agents.control.agent`` builds policy and collector for Gymnasium
    spaces, ``agents.text.agent`` is handed those of a language model.

    Args:
        config: see ``agents.config``.
        policy: any module that implements ``agents.interfaces.Policy``.
        collector: source of rollouts; None for an agent that only predicts.
        env: the vector environment that ``collector`` steps or plays, for ``get_env``.
        generator: of minibatches, and of whatever the collector draws if it was given the same one.
        logger: receives metrics; see ``agents.runs.logging``.
        objective: a loss of your own, in place of all terms of the algorithm's.
        verbose: 1 shows progress in every ``learn``: a bar, or lines where there is no terminal.
    """

    config_type: ClassVar[type[Any]]
    """Settings: an ``AgentConfig``."""
    algorithm: ClassVar[str]
    """Name in checkpoints: one algorithm's are refused by another."""

    def __init__(
        self,
        config: AgentConfig,
        policy: Policy,
        collector: Collector | None,
        *,
        env: VectorEnv | None = None,
        generator: torch.Generator | None = None,
        logger: MetricSink | None = None,
        objective: Objective | None = None,
        verbose: int = 0,
    ) -> None:
        check_device(config.device)
        self.config: Any = config  # a subclass has settings of its own
        self.generator = torch.Generator().manual_seed(config.seed) if generator is None else generator
        self.predict_generator = torch.Generator().manual_seed(config.seed + 1)
        module: Any = policy
        self.policy = (module if is_sharded(module) else module.to(config.device)).eval()  # without dropout
        self.collector = collector
        self.env = env
        self.objective = own_objective(objective)
        self.learner, self.optimizer = self._learning_parts()
        self.logger = as_sink(logger)
        self.metrics: dict[str, float] = {}
        self.steps = 0
        self.updates = 0
        self.span = (0, 0)
        self.verbose = verbose

    def _learning_parts(self) -> tuple[Any, torch.optim.Optimizer]:
        """The module that acts and is trained (the policy, or an equal, faster form of it), and its optimizer."""
        raise NotImplementedError

    def update(self, batch: Batch) -> dict[str, float]:
        """Update the policy from ``batch`` and return metrics; ``progress`` is that of the rollout's beginning."""
        raise NotImplementedError

    @property
    def progress(self) -> float:
        """Share of the current ``learn`` that is done, [0, 1]; schedules follow it."""
        start, end = self.span
        return 0.0 if end <= start else min((self.steps - start) / (end - start), 1.0)

    @property
    def num_timesteps(self) -> int:
        """``steps`` by the name that Stable-Baselines3 gives it."""
        return self.steps

    def get_env(self) -> VectorEnv | None:
        """The vector environment that the agent learns in."""
        return self.env

    def learn(
        self: Self,
        total_timesteps: int | None = None,
        callback: Any = None,
        log_interval: int = 1,
        *,
        progress_bar: bool | None = None,
    ) -> Self:
        """Train for ``total_timesteps`` more steps (to the end of the last rollout that is needed).

        Args:
            total_timesteps: transitions of a control task, texts of a token environment: the unit of ``steps``. None
                continues a ``learn`` that was interrupted to its original end, schedules included.
            callback: called with the agent after every update; returning False ends the training early. Also a callback
                of Stable-Baselines3, or a list; see ``agents.callbacks``.
            log_interval: updates between two lines of the logger.
            progress_bar: show one; None: as ``verbose`` says.

        Returns:
            The agent itself.

        Raises:
            ValueError: without an environment or an interrupted training to continue, or for a number out of range.
        """
        if self.collector is None:
            raise ValueError("this agent has no environment: pass env= to load, or call set_env")
        if not (isinstance(log_interval, int) and log_interval >= 1):
            raise ValueError(f"log_interval: expected 1 or more updates, received {log_interval!r}")
        if total_timesteps is not None:
            if not (isinstance(total_timesteps, Real) and total_timesteps >= 1 and total_timesteps % 1 == 0):
                raise ValueError(f"total_timesteps: expected a whole number of 1 or more, received {total_timesteps!r}")
            self.span = (self.steps, self.steps + int(total_timesteps))
        elif self.span == (0, 0):
            raise ValueError("expected total_timesteps: there is no interrupted training to continue")
        with ExitStack() as stack:
            stack.enter_context(self._learning())
            calls = [stack.enter_context(called(callback, self))]
            if self.verbose if progress_bar is None else progress_bar:
                unit = "texts" if self.collector.counts == "rows" else "steps"
                calls.append(stack.enter_context(bar_of(self, unit)))
            while self.steps < self.span[1]:
                began = time.perf_counter()
                self.iterate()
                self.metrics["time/seconds_per_update"] = time.perf_counter() - began
                if self.updates % log_interval == 0:
                    self.logger.write(self.metrics, self.steps)
                if False in [call(self) for call in calls]:
                    break
        return self

    def _learning(self) -> AbstractContextManager[object]:
        """Around each ``learn``."""
        return nullcontext()

    def extend(self, total: int) -> list[str]:
        """Let a ``learn`` that was interrupted or has ended go on, by ``learn()``, to ``total`` steps in all.

        Returns:
            Settings that follow a line over the whole ``learn``, and so far that of the shorter one; where there are
            none, the result is that of a ``learn`` of this length from the start, bit for bit.
        """
        self.span = (self.span[0], total)
        settings = vars(self.config).items()
        return [name for name, value in settings if isinstance(value, Linear) and value.start != value.end]

    def iterate(self) -> None:
        """One rollout and the update that follows from it."""
        assert self.collector is not None
        began = time.perf_counter()
        try:
            rollout, metrics = self.collector.collect(self.learner)
        except Exception as fault:
            if hasattr(fault, "__notes__"):
                fault.__notes__[-1] += f", after {self.steps} steps of training"
            raise
        collected = time.perf_counter()
        learned = self.update(self.compute_advantages(rollout))
        steps = rollout.num_rows if self.collector.counts == "rows" else rollout.num_steps
        self.steps += steps
        self.updates += 1
        finished = time.perf_counter()
        self.metrics = {
            **metrics,
            **learned,
            "train/updates": float(self.updates),
            "time/steps": float(self.steps),
            "time/collect_share": (collected - began) / (finished - began),
            "time/steps_per_second": steps / (finished - began),
        }

    def compute_advantages(self, rollout: Rollout) -> Batch:
        """Advantages and returns for a rollout, by GAE."""
        advantages = generalized_advantages(
            rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.ended,
            gamma=self.config.gamma, lam=self.config.lam, mask=rollout.mask,
        )  # fmt: skip
        return rollout.to_batch(advantages)

    def predict(
        self, observation: object, state: object = None, episode_start: object = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], object]:
        """Actions for one observation or a batch of them, as Stable-Baselines3's ``predict``."""
        raise NotImplementedError

    @classmethod
    def from_state(cls: type[Self], state: dict[str, Any], env: EnvLike | None = None, **arguments: Any) -> Self:
        """Build the agent that ``state_dict`` gave ``state`` of; arguments and errors as in ``load``."""
        raise NotImplementedError

    @classmethod
    def load(cls: type[Self], path: str | Path, env: EnvLike | None = None, **arguments: Any) -> Self:
        """Load the agent saved at ``path``; training continues bit for bit.

        Args:
            path: what ``save`` wrote.
            env: to continue in; None takes the id it was trained on, if it was given by id. An agent for control
                without either predicts only.
            arguments: ``policy``, the module to fill where it was handed over as an object; ``device``, where it is
                another than it was saved from; ``logger``; ``objective``, if it was trained with one and goes on.

        Raises:
            CheckpointError: if the file is missing, damaged, or of another version or algorithm, or if environment or
                policy cannot be built again from it.
        """
        return cls.from_state(checkpoint.load(path), env, **arguments)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training from here depends on."""
        return {
            "algorithm": self.algorithm,
            "objective": getattr(self.objective, "__qualname__", None),
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
        """Restore training state from ``state``, whatever device it was saved from.

        Raises:
            CheckpointError: if it was of another algorithm or configuration; the message names the fields.
        """
        self._refuse_other(state)
        if self.objective is not None and state.get("objective") is None:
            raise checkpoint.CheckpointError("objective: expected None, as the agent was trained without one")
        ours = self.config.to_dict()
        saved = [pair for pair in state["config"].items() if pair[0] not in NEUTRAL]
        other = {name: value for name, value in saved if _plain(value) != _plain(ours.get(name))}
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
        """Write the whole agent to one file, from which training resumes bit for bit (``agents.runs.checkpoint``)."""
        return checkpoint.save(path, self.state_dict())

    def restore(self: Self, path: str | Path) -> Self:
        """Restore training state from the file at ``path``, whose configuration must be this agent's.

        Raises:
            CheckpointError: if the file is missing, damaged, or of another version or configuration.
        """
        self.load_state_dict(checkpoint.load(path))
        return self


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
