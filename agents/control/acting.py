"""How a policy acts while steps are collected: the actor alone, as the critic and the log-probabilities follow in one
pass over the whole rollout."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ActorCritic(Protocol):
    """The part of ``agents.interfaces.Policy`` that collecting steps needs."""

    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions and their log-probabilities, nats."""

    def values(self, observations: Tensor) -> Tensor:
        """V of each observation, reward units."""


class Actor:
    """Samples actions: with ``choose``, the actor alone, where the policy has it, otherwise with ``act``."""

    def __init__(
        self, policy: Any, num_steps: int, num_envs: int, generator: torch.Generator, device: torch.device
    ) -> None:
        self.policy, self.generator, self.device = policy, generator, device
        self.quick = hasattr(policy, "choose")
        self.noise = policy.draw_noise(num_steps, num_envs, generator).to(device) if self.quick else None
        self._actions: list[Tensor] = []
        self._logprobs: list[Tensor] = []

    @torch.no_grad()
    def step(self, t: int, observations: NDArray[np.float32]) -> NDArray[Any]:
        """Actions ``[B, ...]`` at step ``t`` of the rollout."""
        seen = torch.from_numpy(observations).to(self.device)
        if self.noise is not None:
            actions = self.policy.choose(seen, self.noise[t])
        else:
            actions, logprobs = self.policy.act(seen, generator=self.generator)
            self._logprobs.append(logprobs)
        self._actions.append(actions)
        return actions.cpu().numpy()

    def evaluated(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, log-probabilities and values of the whole rollout."""
        actions = torch.stack(self._actions, 1)
        if not self.quick:
            # A copy: the values may be a view of parameters that the update changes.
            values = self.policy.values(observations.flatten(0, 1)).clone().view(observations.shape[:2])
            return actions, torch.stack(self._logprobs, 1), values
        evaluation = self.policy.evaluate(observations, actions, None)
        return actions, evaluation.logprobs, evaluation.values
