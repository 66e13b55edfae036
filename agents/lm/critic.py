"""Initialization of a language model's critic from a reward model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agents.lm.causal_lm import CausalLMPolicy


@torch.no_grad()
def start_critic(policy: CausalLMPolicy, weight: Tensor, bias: Tensor | float, trunk: nn.Module | None = None) -> None:
    """Initialize the critic from a model with a scalar head, the reward model: ``V(s) = weight h(s) + bias``.

    Source: Stiennon et al. 2020, section 3.4 (arXiv:2009.01325).

    Args:
        policy: with a critic "separate" or "adapter".
        weight: ``[1, D]``, of the head.
        bias: of the head, reward units.
        trunk: its weights are copied to the critic's trunk. None: the trunk is left unchanged (for an adapter see
            ``AdaptedTrunk.copy_adapter``).

    Raises:
        ValueError: if the critic shares the policy's trunk, or the shapes differ.
    """
    if not policy.has_critic or policy.critic == "shared":
        raise ValueError(
            f'critic: expected "separate" or "adapter", which have own weights, received {policy.critic!r}'
        )
    if trunk is not None:
        if policy.critic_trunk is None:
            raise ValueError(f'critic: expected "separate" to copy a trunk to, received {policy.critic!r}')
        try:
            policy.critic_trunk.load_state_dict(trunk.state_dict())
        except RuntimeError as error:
            raise ValueError(f"trunk: expected the shape of the critic's: {error}") from error
    if weight.shape != policy.value_head.weight.shape:
        raise ValueError(f"weight: expected {tuple(policy.value_head.weight.shape)}, received {tuple(weight.shape)}")
    policy.value_head.weight.copy_(weight)
    policy.value_head.bias.fill_(float(bias))
