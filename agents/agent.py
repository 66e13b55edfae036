"""What every agent here shares: collect, judge, improve, repeat; and ``learn``, ``predict``, ``save``, ``load``.

How a batch improves the policy is not here: see ``agents.ppo`` and ``agents.trpo``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from agents import checkpoint
from agents.advantages import generalized_advantages
from agents.environments import EnvLike, make_vector
from agents.logging import MetricSink, NullSink
from agents.mlp import MLPPolicy
from agents.normalise import ObservationNormaliser, RewardScaler
from agents.policy import Collector
from agents.rollout import Batch, Rollout
from agents.space_codec import space_from_dict, space_to_dict
from agents.spaces import ActionDecoder, ObservationEncoder
from agents.step_collector import StepCollector

Callback = Callable[[Any], "bool | None"]
"""Called with the agent after every update; returning False ends ``learn``."""
Self = TypeVar("Self", bound="Agent")


class Agent:
    """The life of an agent; a subclass says in ``improve`` what it learns from a batch.

    Args:
        env: an id (``"CartPole-v1"``, ``"module:Env-v0"``), an ``Env``, a ``VectorEnv``, or None for an agent that
            only predicts.
        config: see ``agents.config``.
        policy: any module that speaks ``agents.policy.Policy``; None builds an ``MLPPolicy`` for the spaces.
        collector: another source of rollouts than steps of ``env`` (whole texts, for instance); ``env`` may be None.
        logger: takes figures; see ``agents.logging``.

    Raises:
        ValueError: for spaces that are not supported, or neither ``env`` nor ``collector`` nor ``policy``.
    """

    config_type: ClassVar[type[Any]]
    """Settings: an ``AgentConfig``."""
    algorithm: ClassVar[str]
    """Name in checkpoints: one algorithm's are refused by another."""

    def __init__(
        self,
        env: EnvLike | None,
        config: Any = None,
        policy: nn.Module | None = None,
        *,
        collector: Collector | None = None,
        logger: MetricSink | None = None,
        spaces: tuple[Any, Any] | None = None,
    ) -> None:
        self.config = config = config or self.config_type()
        self.env_id = env if isinstance(env, str) else None
        self.env: VectorEnv | None = None if env is None else make_vector(env, config.num_envs)
        if self.env is not None:
            spaces = (self.env.single_observation_space, self.env.single_action_space)
        self.spaces = spaces
        self.generator = torch.Generator().manual_seed(config.seed)
        self.predict_generator = torch.Generator().manual_seed(config.seed + 1)
        self.policy: Any = policy if policy is not None else self._default_policy()
        self.policy.to(config.device)
        self.collector = collector or (None if self.env is None else self._step_collector())
        self.learner, self.optimiser = self._learning_parts()
        self.logger: MetricSink = logger or NullSink()
        self.metrics: dict[str, float] = {}
        self.steps = 0
        self.updates = 0
        self.span = (0, 0)

    def _learning_parts(self) -> tuple[Any, torch.optim.Optimizer]:
        """What acts and is trained (the policy, or a faster form of it), and the optimiser of its parameters."""
        raise NotImplementedError

    def improve(self, batch: Batch) -> dict[str, float]:
        """Learn from ``batch``; the figures to log. ``progress`` is still that of the rollout's beginning."""
        raise NotImplementedError

    def _default_policy(self) -> MLPPolicy:
        if self.spaces is None:
            raise ValueError(f"{type(self).__name__} needs an environment to learn in, or a policy and a collector")
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return MLPPolicy(
                *self.spaces,
                hidden=config.hidden,
                activation=config.activation,
                log_std=config.log_std,
                sde_sample_freq=config.sde_sample_freq,
            )

    def _step_collector(self) -> StepCollector:
        assert self.env is not None
        config, encoder = self.config, ObservationEncoder(self.env.single_observation_space)
        return StepCollector(
            self.env,
            config.num_steps,
            generator=self.generator,
            seed=config.seed,
            device=config.device,
            normaliser=ObservationNormaliser(encoder.size, free=encoder.mask_size)
            if config.normalise_observations
            else None,
            reward_scaler=RewardScaler(self.env.num_envs, config.gamma) if config.normalise_rewards else None,
        )

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
            goes_on = None if callback is None else callback(self)
            if goes_on is not None and not goes_on:  # numpy's False is not the object False
                break
        return self

    def iterate(self) -> None:
        """One rollout and the update that follows from it."""
        assert self.collector is not None
        began = time.perf_counter()
        rollout, metrics = self.collector.collect(self.learner)
        collected = time.perf_counter()
        figures = self.improve(self.judge(rollout))
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

    def judge(self, rollout: Rollout) -> Batch:
        """Advantages and returns for a rollout, by GAE."""
        return rollout.judged(
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

    @torch.no_grad()
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions for one observation or a batch of them; statistics of normalisation stay as they are.

        Args:
            observation: as the environment gives it, single or batched.
            state: passed through (the policy has no memory).
            episode_start: ignored, as the policy has no memory.
            deterministic: the likeliest action, or the mean, instead of a sample.

        Returns:
            Actions as the environment takes them, and ``state``.
        """
        encode, decode = self._codecs()
        single = encode.is_single(observation)
        features = encode.single(observation) if single else encode(observation)
        normaliser = getattr(self.collector, "normaliser", None)
        if normaliser is not None:
            features = normaliser(features)
        actions, _ = self.policy.act(
            torch.from_numpy(features).to(self.config.device),
            deterministic=deterministic,
            generator=self.predict_generator,
        )
        decoded = decode(actions.cpu().numpy())
        return (decoded[0] if single else decoded), state

    def _codecs(self) -> tuple[ObservationEncoder, ActionDecoder]:
        if not hasattr(self, "_codec_pair"):
            if self.spaces is None:
                raise ValueError("predict needs to know the spaces: build the agent with an environment")
            self._codec_pair = ObservationEncoder(self.spaces[0]), ActionDecoder(self.spaces[1])
        return self._codec_pair

    def state_dict(self) -> dict[str, Any]:
        """Everything that training from here depends on."""
        return {
            "algorithm": self.algorithm,
            "config": self.config.to_dict(),
            "env_id": self.env_id,
            "spaces": None if self.spaces is None else [space_to_dict(space) for space in self.spaces],
            "policy": dict(self.policy.state_dict()),
            "optimiser": self.optimiser.state_dict(),
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
            self.optimiser.load_state_dict(state["optimiser"])
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
        """Write the whole agent to one file, from which training resumes bit for bit (see ``agents.checkpoint``)."""
        return checkpoint.save(path, self.state_dict())

    def restore(self: Self, path: str | Path) -> Self:
        """Become the agent saved at ``path``, which must have this one's configuration.

        Raises:
            CheckpointError: if the file is missing, damaged, or of another version or configuration.
        """
        self.load_state_dict(checkpoint.load(path))
        return self

    @classmethod
    def load(
        cls: type[Self],
        path: str | Path,
        env: EnvLike | None = None,
        *,
        policy: nn.Module | None = None,
        device: str | None = None,
        logger: MetricSink | None = None,
    ) -> Self:
        """The agent saved at ``path``.

        Args:
            path: what ``save`` wrote.
            env: to go on training in; None takes the id it was trained on, if it was given by id. Without either the
                agent predicts only.
            policy: the module to fill, where it was not the default one.
            device: another device than it was saved from.
            logger: as in ``PPO``.

        Raises:
            CheckpointError: if the file is missing, damaged, or of another version or algorithm.
        """
        return cls.from_state(checkpoint.load(path), env, policy=policy, device=device, logger=logger)

    @classmethod
    def from_state(
        cls: type[Self],
        state: dict[str, Any],
        env: EnvLike | None = None,
        *,
        policy: nn.Module | None = None,
        device: str | None = None,
        logger: MetricSink | None = None,
    ) -> Self:
        """The agent that ``state_dict`` gave ``state`` of; arguments and errors as in ``load``."""
        cls._refuse_other(state)
        if device is not None:
            state["config"]["device"] = device
        config = cls.config_type.from_dict(state["config"])
        known = state["spaces"]
        spaces = None if known is None else (space_from_dict(known[0]), space_from_dict(known[1]))
        agent = cls(env if env is not None else state["env_id"], config, policy, logger=logger, spaces=spaces)
        agent.env_id = agent.env_id or state["env_id"]
        agent.load_state_dict(state)
        return agent


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
