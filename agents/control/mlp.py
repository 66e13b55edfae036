"""Actor and critic as two small fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.control.heads import CategoricalHead, GaussianHead, StateDependentHead, head_for
from agents.control.spaces import ObservationEncoder
from agents.functional.distributions import mask_logits
from agents.interfaces import Evaluation

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def multilayer(sizes: Sequence[int], *, gain: float, activation: str = "tanh") -> nn.Sequential:
    """Linear layers of ``sizes`` with an activation between them, orthogonal weights and zero biases.

    ``gain`` is of the last layer; the hidden ones have sqrt(2). Source: the gains are those of OpenAI baselines
    (Engstrom et al. 2020, arXiv:2005.12729; Huang et al. 2022, "The 37 implementation details of PPO", detail 2).
    """
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.Linear(width_in, width_out)
        nn.init.orthogonal_(linear.weight, gain if last else math.sqrt(2.0))
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class MLPPolicy(nn.Module):
    """Separate actor and critic networks; a head maps the actor's outputs to actions, the critic's output is V.

    Observations are flat float32 ``[..., D]`` (``agents.control.spaces.ObservationEncoder``); if the space is a Dict
    with an ``action_mask``, its columns are the last ones and forbid actions.

    Args:
        observation_space: of one environment.
        action_space: of one environment: Discrete, MultiDiscrete, MultiBinary or Box.
        hidden: widths of the hidden layers.
        activation: "tanh" or "relu".
        log_std: initial log standard deviation of Box actions.
        sde_sample_freq: steps between two draws of state-dependent exploration noise (``StateDependentHead``), -1
            for once a rollout; None: independent noise each step. Box actions only.

    Raises:
        ValueError: for spaces that do not flatten, an unknown activation, or a mask that does not fit the actions.
    """

    keeps_rows = False

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        log_std: float = 0.0,
        sde_sample_freq: int | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, received {activation!r}")
        if not isinstance(hidden, Sequence) or not all(isinstance(width, int) and width >= 1 for width in hidden):
            raise ValueError(f"hidden: expected the widths of the layers, each 1 or more, received {hidden!r}")
        encoder = ObservationEncoder(observation_space)
        self.head: CategoricalHead | GaussianHead | StateDependentHead
        if sde_sample_freq is None:
            self.head = head_for(action_space, log_std=log_std)
        elif isinstance(action_space, spaces.Box) and hidden:
            self.head = StateDependentHead(action_space, hidden[-1], log_std=log_std, sample_freq=sde_sample_freq)
        else:
            raise ValueError(f"sde_sample_freq needs Box actions and a hidden layer, received {action_space}, {hidden}")
        self.mask_size = encoder.mask_size
        if self.mask_size and (self.mask_size != self.head.num_outputs or isinstance(action_space, spaces.Box)):
            raise ValueError(f"an action_mask of {self.mask_size} entries does not fit the action space {action_space}")
        self.input_size = encoder.size - self.mask_size
        self.actor = multilayer([self.input_size, *hidden, self.head.num_outputs], gain=0.01, activation=activation)
        self.critic = multilayer([self.input_size, *hidden, 1], gain=1.0, activation=activation)

    def outputs(self, observations: Tensor) -> Tensor:
        """The head's input: the actor's outputs ``[..., num_outputs]``, with forbidden actions at ``-inf``."""
        if isinstance(self.head, StateDependentHead):
            hidden = self.actor[:-1](observations)
            return torch.cat([self.actor[-1](hidden), hidden], -1)
        if self.mask_size == 0:
            return self.actor(observations)
        features, allowed = observations.split([self.input_size, self.mask_size], -1)
        return mask_logits(self.actor(features), allowed > 0)

    def values(self, observations: Tensor) -> Tensor:
        """V of ``observations`` ``[..., D]``: ``[...]`` reward units."""
        return self.critic(observations[..., : self.input_size]).squeeze(-1)

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[B]`` or ``[B, K]`` and their log-probabilities ``[B]`` (nats)."""
        outputs = self.outputs(observations)
        noise = None if deterministic else self.head.noise(tuple(observations.shape[:-1]), generator).to(outputs.device)
        actions = self.head.sample(outputs, noise)
        return actions, self.head.evaluate(outputs, actions)[0]

    def draw_noise(self, num_steps: int, num_envs: int, generator: torch.Generator | None) -> Tensor:
        """The randomness of a whole rollout ``[num_steps, num_envs, ...]``, for ``choose``."""
        return self.head.noise((num_steps, num_envs), generator)

    def choose(self, observations: Tensor, noise: Tensor | None) -> Tensor:
        """Actions for ``observations`` ``[B, D]`` with one step of ``draw_noise``; only the actor runs."""
        return self.head.sample(self.outputs(observations), noise)

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None = None) -> Evaluation:
        """Log-probabilities, entropies and values ``[B, T]`` of ``actions`` taken at ``observations`` ``[B, T, D]``."""
        logprobs, entropy = self.head.evaluate(self.outputs(observations), actions)
        return Evaluation(logprobs, entropy, self.values(observations))
