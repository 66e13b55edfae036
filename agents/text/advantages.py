"""Advantages of a rollout of text as ``TextAgentConfig`` asks for them: by a critic, or turn by turn within a group."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.advantages import ends_of_turns, generalized_advantages
from agents.functional.group_advantages import rewards_to_go_by_turn, turn_advantages
from agents.functional.masked import fill_masked
from agents.rollout import Rollout
from agents.text.config import TextAgentConfig


def critic_advantages(rollout: Rollout, rewards: Tensor, lam: float, config: TextAgentConfig) -> Tensor:
    """GAE ``[B, T]``; in dialogues discounted by turns, too, and with credit "turn" ``lam`` holds between turns only.

    Within a turn lambda is then 1: what a token is credited with is what its turn is, less the turn's earlier rewards
    and with the critic's opinion at the token in place of that at the turn's beginning.
    """
    turns = rollout.turns
    gamma: float | Tensor = config.gamma
    decay: float | Tensor = lam
    if turns is not None:
        closing = ends_of_turns(turns)
        gamma = torch.where(closing, gamma * config.gamma_turn, gamma)
        decay = torch.where(closing, lam, 1.0) if config.credit == "turn" else lam
    values, next_values, terminated = rollout.values, rollout.next_values, rollout.terminated
    return generalized_advantages(
        rewards, values, next_values, terminated, rollout.ended, gamma=gamma, lam=decay, mask=rollout.mask
    )


def turn_rewards_to_go(rollout: Rollout, config: TextAgentConfig) -> Tensor:
    """``[B, T]`` reward units: at each step the discounted rewards from its turn on."""
    assert rollout.turns is not None
    return rewards_to_go_by_turn(fill_masked(rollout.rewards, rollout.mask), rollout.turns, gamma=config.gamma_turn)


def group_turn_advantages(rollout: Rollout, config: TextAgentConfig) -> Tensor:
    """``[B, T]`` of turns within the group: those of one number, or with credit "state" those begun in one state."""
    assert rollout.turns is not None
    assert rollout.states is not None
    return turn_advantages(
        turn_rewards_to_go(rollout, config),
        rollout.turns,
        rollout.turns if config.credit == "turn" else rollout.states,
        config.group_size,
        leave_one_out=config.algorithm == "rloo",
        normalize_std=config.normalize_std,
    )
