"""The environment of ``verify --env``: makes, records and replays copies of it. No checks here."""

from __future__ import annotations

import copy
import importlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

from agents.agent import Agent
from agents.algorithms.loading import load_agent
from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.control import environments
from agents.control.acting import ActorCritic
from agents.control.collector import StepCollector
from agents.control.spaces import ActionDecoder, ObservationEncoder
from agents.rollout import Rollout
from agents.verification.checks import larger

NUM_ENVS, NUM_STEPS, LIMIT = 3, 64, 25
"""Copies side by side; steps of each; a time limit, so that truncation occurs."""


class Recorder(gym.Wrapper):
    """Record the actions of one environment, the observations before them, and its episodes' returns."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.acted_on: list[Any] = []
        self.actions: list[Any] = []
        self.episodes: list[tuple[float, int]] = []
        self._current: Any = None
        self._total, self._length = 0.0, 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment."""
        observation, info = self.env.reset(**options)
        self._current, self._total, self._length = copy.deepcopy(observation), 0.0, 0
        return observation, info

    def step(self, action: object) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment."""
        self.acted_on.append(self._current)
        self.actions.append(copy.deepcopy(action))
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._current = copy.deepcopy(observation)
        self._total, self._length = self._total + float(reward), self._length + 1
        if terminated or truncated:
            self.episodes.append((self._total, self._length))
        return observation, reward, terminated, truncated, info


@dataclass
class Replay:
    """How a rollout differs from the same actions in single environments; largest ``|x - y| / (1 + |x|)``."""

    observations: float = 0.0
    rewards: float = 0.0
    flags: int = 0  # steps whose terminated or end of episode differ
    bootstrap: float = 0.0  # of V after a truncation, from V of the single environment's last observation
    truncations: int = 0
    episodes: list[tuple[float, int]] = field(default_factory=list)  # returns and lengths, in order


class Subject:
    """One environment id, with an agent for it.

    ``env_id`` is as ``gym.make`` takes it, ``module:Env-v0`` included, and may have only a vector environment;
    ``checkpoint`` is a saved agent whose policy acts, None a fresh network.

    Raises:
        gymnasium.error.Error: no such id.
        ValueError: the environment cannot be made, or the checkpoint's spaces are not the environment's.
    """

    def __init__(self, env_id: str, *, checkpoint: str | Path | None = None, seed: int = 0) -> None:
        module, _, name = env_id.rpartition(":")
        if module:
            importlib.import_module(module)
        self.env_id, self.seed = env_id, seed
        self.spec = gym.spec(name)
        self.is_scalar = self.spec.entry_point is not None
        limit = self.spec.max_episode_steps
        self.limit: int | None = LIMIT if limit is None else min(LIMIT, limit)
        if self.is_scalar and self.spec.vector_entry_point is not None and name not in environments.NATIVE:
            self.limit = None  # a vector form of the environment's own keeps its own time limit
        try:
            known = self.spaces
        except Exception as error:  # without an environment there is nothing to check
            raise ValueError(f"{env_id} cannot be made: {type(error).__name__}: {error}") from error
        loaded: Any = None if checkpoint is None else load_agent(checkpoint)
        self.loaded: Agent | None = loaded
        if loaded is not None and (loaded.spaces is None or tuple(loaded.spaces) != known):
            raise ValueError(f"{checkpoint} : expected the spaces {known} of {env_id}, received {loaded.spaces}")

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Of one environment: observations and actions."""
        if self.is_scalar:
            env = self.single()
            return env.observation_space, env.action_space
        envs = self.vector()
        return envs.single_observation_space, envs.single_action_space

    def single(self, *, limited: bool = True) -> gym.Env:
        """One environment, with a time limit of ``limit`` steps or with its own."""
        options: dict[str, Any] = {"max_episode_steps": self.limit} if limited and self.limit else {}
        return gym.make(self.env_id, disable_env_checker=True, **options)

    def recorded(self, mode: AutoresetMode = AutoresetMode.SAME_STEP) -> tuple[SyncVectorEnv, list[Recorder]]:
        """A ``SyncVectorEnv`` of single environments, and their recorders."""
        recorders = [Recorder(self.single()) for _ in range(NUM_ENVS)]
        return SyncVectorEnv([lambda one=one: one for one in recorders], autoreset_mode=mode), recorders  # type: ignore[misc]

    def vector(self, mode: AutoresetMode = AutoresetMode.SAME_STEP) -> VectorEnv:
        """The vector environment that training uses, with ``single``'s time limit; TypeError if it has no such mode."""
        if self.is_scalar:
            options = {} if self.limit is None else {"max_episode_steps": self.limit}
            return environments.make_vector(self.env_id, NUM_ENVS, mode, **options)
        asked: dict[str, Any] = {} if mode is AutoresetMode.SAME_STEP else {"autoreset_mode": mode}
        if not asked:
            with suppress(Exception):  # an id that has a vector form only, in a mode of its own
                return environments.make_vector(self.env_id, NUM_ENVS)
        return gym.make_vec(self.env_id, num_envs=NUM_ENVS, vectorization_mode="vector_entry_point", **asked)

    def agent(self, envs: VectorEnv, **settings: Any) -> PPO:
        """PPO in ``envs`` with the policy under test."""
        options: dict[str, Any] = {"num_envs": NUM_ENVS, "num_steps": NUM_STEPS, "minibatch_size": 48, "epochs": 3}
        options |= {"hidden": (16,), "seed": self.seed}
        policy = None if self.loaded is None else copy.deepcopy(self.loaded.policy)
        return PPO(envs, PPOConfig(**(options | settings)), policy)

    def replay(self, rollout: Rollout, policy: ActorCritic) -> Replay:
        """Replay a rollout's actions in single environments, seeded as a vector environment seeds its rows."""
        encode, decode = ObservationEncoder(self.spaces[0]), ActionDecoder(self.spaces[1])
        found = Replay()
        for row in range(rollout.num_rows):
            env = Recorder(self.single())
            seen, _ = env.reset(seed=self.seed + row)
            for t in rollout.mask[row].nonzero().flatten().tolist():
                now = encode.single(seen)[0]
                gap = (np.abs(now - rollout.observations[row, t].numpy()) / (1 + np.abs(now))).max()
                action = decode(rollout.actions[row, t : t + 1].numpy())[0]
                seen, reward, terminated, truncated, _ = env.step(action)
                found.observations = larger(found.observations, gap)
                gap = abs(float(rollout.rewards[row, t]) - float(np.float32(reward))) / (1 + abs(float(reward)))
                found.rewards = larger(found.rewards, gap)
                over = bool(terminated or truncated)
                cut = over or t == rollout.mask.shape[1] - 1
                same = bool(rollout.terminated[row, t]) == terminated and bool(rollout.ended[row, t]) == cut
                found.flags += not same
                if truncated and not terminated:
                    with torch.no_grad():
                        value = policy.values(torch.from_numpy(encode.single(seen)))[0]
                    found.truncations += 1
                    gap = abs(float((value - rollout.next_values[row, t]) / (1 + value.abs())))
                    found.bootstrap = larger(found.bootstrap, gap)
                if over:
                    seen, _ = env.reset()
            found.episodes += env.episodes
        return found


class ByObservation(torch.nn.Module):
    """A deterministic policy: reset steps consume no random numbers, so all autoreset modes stay comparable."""

    keeps_rows = False

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy)
        if hasattr(self.policy, "actor"):
            self.policy.actor[-1].weight.data.mul_(100.0)  # an untrained network is almost uniform

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """One row at a time: a product of one row and of many may differ in the last digit."""
        parts = [self.policy.act(row[None], deterministic=True) for row in observations]
        actions, logprobs = (torch.cat(part) for part in zip(*parts, strict=True))
        return actions, logprobs

    def values(self, observations: Tensor) -> Tensor:
        """The policy's."""
        return self.policy.values(observations)


def collected_steps(collector: StepCollector, policy: ActorCritic, rollouts: int = 1) -> list[list[list[float]]]:
    """All training data of each environment, step by step, without masked reset steps."""
    rows: list[list[list[float]]] = [[] for _ in range(collector.envs.num_envs)]
    for _ in range(rollouts):
        r, _ = collector.collect(policy)
        numbers = (r.rewards, r.terminated, r.values, r.next_values.masked_fill(r.terminated, 0.0), r.actions)
        data = torch.cat([r.observations.double(), *(x.double().reshape(*r.mask.shape, -1) for x in numbers)], -1)
        for row, steps in enumerate(rows):
            steps += data[row][r.mask[row]].tolist()
    return rows
