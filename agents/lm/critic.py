"""Initialization of a language model's critic from a reward model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.lora import VALUE, RoleTrunk
from reward_models.ensemble import RewardEnsemble
from reward_models.model import RewardModel
from textenvs.tokens.tokenizers import Tokenizer, same_tokenizer
from textenvs.wrappers.interfaces import Scorer


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


def start_critic_as_reward(
    policy: CausalLMPolicy, tokenizer: Tokenizer | None, scorer: Scorer, first_prompt: Sequence[int]
) -> None:
    """Initialize the policy's critic from a reward model (an ensemble's first member): trunk or adapter, and head.

    Its values are then the reward model's scores if both read the same tokens. The reward model opens a text with its
    tokenizer's bos; where prompts have none (GPT-2's own tokenizer adds none) the critic reads the text without it, and
    its values are near the scores, not equal, and a warning says so.

    Args:
        policy: whose critic.
        tokenizer: the policy's.
        scorer: a reward model or an ensemble.
        first_prompt: token ids of a prompt of the run.

    Raises:
        ValueError: if it is no reward model, reads other tokens, or is of another shape than the critic.
    """
    one = scorer.members[0] if isinstance(scorer, RewardEnsemble) else scorer
    if not isinstance(one, RewardModel):
        raise ValueError(f"critic_start reward-model: the first reward must be one, not {type(one).__name__}")
    if not same_tokenizer(one.tokenizer, tokenizer):
        raise ValueError("critic_start reward-model: the reward model's tokenizer is not the language model's")
    weight, bias = one.head.weight / one.std, float(-one.mean / one.std)
    trunk: Any = one.backbone
    if policy.adapters is None:
        start_critic(policy, weight, bias, trunk)
    elif isinstance(trunk, RoleTrunk) and trunk.role is not None:
        policy.adapters.copy_adapter(trunk.role, VALUE)
        start_critic(policy, weight, bias)
    else:
        raise ValueError("critic_start reward-model: with memory adapters the reward model is one over the same trunk")
    bos = one.tokenizer.bos_token_id
    if bos is not None and first_prompt[0] != bos:
        warnings.warn(
            f"critic_start reward-model: the reward model opens a text with {one.tokenizer.bos_token!r}, the prompts "
            "do not, so the critic's first values are near the rewards, not equal",
            stacklevel=2,
        )
