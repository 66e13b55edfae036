"""An agent for Gymnasium spaces: builds the policy and the collector of an environment; ``predict`` and ``load``.

How a batch updates the policy is not here: see ``agents.control.ppo`` and ``agents.control.trpo``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import nn

from agents.agent import Agent
from agents.config import AgentConfig, with_settings
from agents.control.collector import StepCollector
from agents.control.env_state import snapshot as env_state
from agents.control.environments import EnvLike, make_vector
from agents.control.mlp import MLPPolicy
from agents.control.normalize import ObservationNormalizer, RewardScaler
from agents.control.spaces import ActionDecoder, ObservationEncoder, space_from_dict, space_to_dict
from agents.functional.running_moments import RunningMoments
from agents.interfaces import Collector, check_memoryless
from agents.runs.logging import MetricSink
from agents.update import Objective, absent_objective

MLP_POLICY = "MlpPolicy"
"""Stable-Baselines3's name for separate small actor and critic networks."""
Self = TypeVar("Self", bound="ControlAgent")


class ControlAgent(Agent):
    """Build policy and collector for an environment.

    Args:
        env: an id (``"CartPole-v1"``, ``"module:Env-v0"``), an ``Env``, a ``VectorEnv``, or None for an agent that
            only predicts.
        config: see ``agents.config``; None: the defaults.
        policy: any module that implements ``agents.interfaces.Policy``; None or ``"MlpPolicy"`` builds an ``MLPPolicy``
            for the spaces.
        collector: another source of rollouts than steps of ``env``; ``env`` may then be None.
        logger, objective, verbose: as in ``Agent``.
        spaces: observation and action space, where there is no ``env``.
        settings: fields of ``config`` as keywords, over ``config``.

    Raises:
        ValueError: for spaces that are not supported, an unknown setting, or neither ``env`` nor ``collector`` nor
            ``policy``.
    """

    def __init__(
        self,
        env: EnvLike | None,
        config: AgentConfig | None = None,
        policy: nn.Module | str | None = None,
        *,
        collector: Collector | None = None,
        logger: MetricSink | None = None,
        objective: Objective | None = None,
        verbose: int = 0,
        spaces: tuple[Any, Any] | None = None,
        **settings: Any,
    ) -> None:
        chosen: Any = with_settings(self.config_type, config, settings)  # a subclass has settings of its own
        self.env_id = env if isinstance(env, str) else None
        envs = None if env is None else make_vector(env, chosen.num_envs)
        if envs is not None and "num_envs" in settings and chosen.num_envs != envs.num_envs:
            raise ValueError(f"num_envs: expected {envs.num_envs}, as env has, or an id, received {chosen.num_envs}")
        self.spaces = spaces if envs is None else (envs.single_observation_space, envs.single_action_space)
        generator = torch.Generator().manual_seed(chosen.seed)
        if isinstance(policy, str) and policy != MLP_POLICY:
            raise ValueError(f"policy: expected a module or {MLP_POLICY!r} for a control task, received {policy!r}")
        module: Any = self._default_policy(chosen) if policy is None or isinstance(policy, str) else policy
        lacks = [name for name in ("act", "values", "evaluate", "keeps_rows") if not hasattr(module, name)]
        if lacks and envs is not None:
            raise ValueError(
                f"policy: expected a module as in docs/howto/policy.md, received {type(module).__name__}, which lacks "
                f"{', '.join(lacks)}"
            )
        self.normalizer, self.reward_moments = None, RunningMoments()
        if self.spaces is not None and chosen.normalize_observations:
            encoder = ObservationEncoder(self.spaces[0])
            self.normalizer = ObservationNormalizer(encoder.size, free=encoder.mask_size)
        if collector is None and envs is not None:
            collector = self._step_collector(envs, chosen, generator)
        shared: dict[str, Any] = {"logger": logger, "objective": objective, "verbose": verbose}
        super().__init__(chosen, module, collector, env=envs, generator=generator, **shared)
        if isinstance(collector, StepCollector) and not isinstance(module, MLPPolicy):
            sample = collector.encode.single(deepcopy(collector.envs.single_observation_space).sample())
            check_memoryless(module, torch.from_numpy(sample).expand(collector.envs.num_envs, -1))

    def _default_policy(self, config: Any) -> MLPPolicy:
        if self.spaces is None:
            raise ValueError(f"{type(self).__name__} needs an environment to learn in, or a policy and a collector")
        settings = {name: getattr(config, name) for name in ("hidden", "activation", "log_std", "sde_sample_freq")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return MLPPolicy(*self.spaces, **settings)

    def _step_collector(self, envs: VectorEnv, config: Any, generator: torch.Generator) -> StepCollector:
        scaler = RewardScaler(envs.num_envs, config.gamma, self.reward_moments) if config.normalize_rewards else None
        return StepCollector(
            envs, config.num_steps, generator=generator, seed=config.seed, device=config.device,
            normalizer=self.normalizer, reward_scaler=scaler,
        )  # fmt: skip

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """Episodes go on where the last ``learn`` left them, or if somebody else has stepped the environments since
        then, begin with fresh resets."""
        collector = self.collector
        if not isinstance(collector, StepCollector):
            yield
            return
        if collector.left and not env_state.same(collector.left, env_state.capture(collector.envs)):
            collector.restart()
        yield
        collector.left = env_state.capture(collector.envs)

    def set_env(self, env: EnvLike) -> None:
        """Continue in another environment of the same spaces, from its first reset, with the statistics so far;
        ValueError if its spaces differ.

        After a ``load`` without ``env``, the way to continue in environments of another number or type.
        """
        envs = make_vector(env, self.config.num_envs)
        spaces = (envs.single_observation_space, envs.single_action_space)
        if self.spaces is not None and spaces != tuple(self.spaces):
            raise ValueError(f"set_env: expected the spaces {self.spaces}, received {spaces}")
        self.env, self.env_id = envs, env if isinstance(env, str) else None
        self.collector = self._step_collector(envs, self.config, self.generator)

    @torch.no_grad()
    def predict(
        self, observation: object, state: object = None, episode_start: object = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], object]:
        """Actions for one observation or a batch of them, and ``state``; statistics of normalization stay as they are.

        ``deterministic`` returns the likeliest action, or the mean, instead of a sample. The policy has no memory:
        ``state`` is passed through and ``episode_start`` ignored. ValueError for an observation of another shape, or
        one that is not finite.
        """
        encode, decode = self._codecs
        fault: Exception | None = None
        try:
            single = encode.is_single(observation)
            features = encode.single(observation) if single else encode(observation)
        except (TypeError, ValueError, LookupError) as error:
            fault = error
        if fault or features.shape[1:] != (encode.size,) or not np.isfinite(features).all():
            raise ValueError(
                f"observation: expected finite numbers of {encode.space}, or a batch, received {observation!r:.200}"
            ) from fault
        normalizer = self.normalizer if self.collector is None else getattr(self.collector, "normalizer", None)
        if normalizer is not None:
            features = normalizer(features)
        actions, _ = self.policy.act(
            torch.from_numpy(features).to(self.config.device),
            deterministic=deterministic,
            generator=self.predict_generator,
        )
        decoded = decode(actions.cpu().numpy())
        return (decoded[0] if single else decoded), state

    @cached_property
    def _codecs(self) -> tuple[ObservationEncoder, ActionDecoder]:
        if self.spaces is None:
            raise ValueError("predict: expected an agent with spaces, received one built without an environment")
        return ObservationEncoder(self.spaces[0]), ActionDecoder(self.spaces[1])

    def state_dict(self) -> dict[str, Any]:
        """``Agent.state_dict`` with the environment's id and spaces."""
        spaces = None if self.spaces is None else [space_to_dict(space) for space in self.spaces]
        return {**super().state_dict(), "env_id": self.env_id, "spaces": spaces}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore training state; without an environment, the statistics too, which acting and ``set_env`` need."""
        super().load_state_dict(state)
        if self.collector is None and state["collector"] is not None:
            if self.normalizer is not None:
                self.normalizer.load_state_dict(state["collector"]["normalizer"])
            if self.config.normalize_rewards:
                self.reward_moments.load_state_dict(state["collector"]["reward_scaler"]["moments"])

    @classmethod
    def from_state(  # type: ignore[override]  # only these keywords: an unknown one must not be ignored
        cls: type[Self],
        state: dict[str, Any],
        env: EnvLike | None = None,
        *,
        policy: nn.Module | None = None,
        device: str | None = None,
        logger: MetricSink | None = None,
        objective: Objective | None = None,
    ) -> Self:
        """Build the agent from a ``state_dict``; arguments and errors as in ``load``."""
        cls._refuse_other(state)
        objective = objective or absent_objective(state.get("objective"))
        if device is not None:
            state["config"]["device"] = device
        config = cls.config_type.from_dict(state["config"])
        spaces: Any = None if state["spaces"] is None else tuple(map(space_from_dict, state["spaces"]))
        given: dict[str, Any] = {"logger": logger, "objective": objective, "spaces": spaces}
        agent = cls(env if env is not None else state["env_id"], config, policy, **given)
        agent.env_id = agent.env_id or state["env_id"]
        agent.load_state_dict(state)
        return agent
