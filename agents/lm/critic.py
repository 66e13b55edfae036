"""Initialization of a language model's critic from a reward model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agents.lm.causal_lm import CausalLMPolicy


@torch.no_grad()
def start_critic(policy: CausalLMPolicy, weight: Tensor, bias: Tensor | float, trunk: nn.Module | None = None) -> None:
    """Start the critic from another model with a scalar head, the reward model: ``V(s) = weight h(s) + bias``.

    Source: Stiennon et al. 2020, section 3.4 (arXiv:2009.01325).

    Args:
        policy: with a critic that has weights of its own.
        weight: ``[1, D]``, of the head.
        bias: its offset, reward units.
        trunk: of the critic's own trunk's shape; its weights are copied. None: the trunk stays as it is (the
            value's adapter may have been changed; see ``AdaptedTrunk.copy_adapter``).

    Raises:
        ValueError: if the critic is the policy's trunk, or the shapes differ.
    """
    if not policy.has_critic or policy.critic == "shared":
        raise ValueError(f"a critic {policy.critic!r} has nothing of its own that could begin as another model")
    if trunk is not None:
        if policy.critic_trunk is None:
            raise ValueError(f"a critic {policy.critic!r} has no trunk of its own to be given another's weights")
        try:
            policy.critic_trunk.load_state_dict(trunk.state_dict())
        except RuntimeError as error:
            raise ValueError(f"the critic's trunk cannot begin as that model: {error}") from error
    if weight.shape != policy.value_head.weight.shape:
        raise ValueError(f"the head's weight is {tuple(weight.shape)}, not {tuple(policy.value_head.weight.shape)}")
    policy.value_head.weight.copy_(weight)
    policy.value_head.bias.fill_(float(bias))
