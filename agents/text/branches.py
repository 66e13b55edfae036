"""Training batches with further tokens in each state, whose advantages the critic tells; see ``agents.lm.branches``."""

from __future__ import annotations

from dataclasses import replace

import torch

from agents.functional.advantages import all_action_advantages
from agents.functional.masked import fill_masked, mean_and_scale
from agents.lm.branches import Branches, draw_branches
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.sampling import uniform
from agents.rollout import Batch, Rollout
from agents.runs.distributed import ALONE, Processes
from agents.text.config import TextAgentConfig
from agents.text.stepwise import TextPolicy
from textenvs.dialogues.vector import DialogueVectorEnv


def branched(
    batch: Batch,
    rollout: Rollout,
    config: TextAgentConfig,
    policy: CausalLMPolicy,
    reference: CausalLMPolicy | None,
    *,
    beta: float,
    generator: torch.Generator,
    processes: Processes = ALONE,
) -> Batch:
    """``batch`` with further tokens and their advantages, and what is left for the tokens that were taken.

    A token that ends the text, and every token of the last step, has a value that only the reward tells: such ones get
    no advantage, and are not compared. Normalized advantages are divided by the deviation of those by GAE; no mean is
    subtracted, since each state has a baseline of its own.

    Args:
        batch: with advantages by GAE.
        rollout: that it was made of.
        config: number of tokens, discount, where the KL is charged, and whether advantages are normalized.
        policy, reference: that acted, and that the KL is measured against.
        beta: price of the KL, reward units per nat.
        generator: of the tokens.
        processes: with the same batch; each draws the tokens of its share of the rows.
    """
    assert reference is not None  # as `check_branches` has seen
    drawn = _draw(policy, reference, rollout, config.branches, generator, processes)
    width = rollout.mask.shape[1]
    goes_on = torch.arange(width, device=rollout.mask.device) < width - 1
    price = 0.0 if config.kl_in == "loss" else beta
    advantages, others = all_action_advantages(
        batch.advantages,
        rollout.values,
        rollout.rewards + config.gamma * rollout.next_values,
        comparable=goes_on & ~rollout.ended,
        others=config.gamma * drawn.values - price * (drawn.logprobs - drawn.ref_logprobs),
        known=~drawn.ends & goes_on[:, None],
    )
    scale = torch.ones(())
    if config.normalize_advantages == "batch":
        _, scale = mean_and_scale(batch.advantages, batch.mask)
    return replace(
        batch,
        advantages=fill_masked(advantages, rollout.mask) / scale,
        branches=drawn.tokens,
        branch_logprobs=drawn.logprobs,
        branch_advantages=others.masked_fill(~rollout.mask[..., None], 0.0) / scale,
    )


def _draw(
    policy: CausalLMPolicy,
    reference: CausalLMPolicy,
    rollout: Rollout,
    count: int,
    generator: torch.Generator,
    processes: Processes,
) -> Branches:
    """``count`` tokens in each state, drawn by each process for its share of the rows with the numbers of one alone."""
    mask, ours = rollout.mask, processes.shard(len(rollout.mask))
    noise = uniform(int(mask.sum()) * count, generator, mask.device).view(-1, count)
    before, within = (int(mask[rows].sum()) for rows in (slice(ours.start), ours))
    inputs = (each[ours] for each in (rollout.observations, rollout.actions, mask))
    share = draw_branches(policy, reference, *inputs, noise=noise[before : before + within])
    shares = zip(*processes.all_gather(share), strict=True)
    return Branches(*(torch.cat(each).to(mask.device) for each in shares))


def check_branches(policy: TextPolicy, envs: object) -> None:
    """Raise ValueError unless ``policy``, in ``envs`` (None: unknown), can draw further tokens in each state."""
    if not isinstance(policy, CausalLMPolicy) or policy.sampling.filters:
        raise ValueError(
            "branches: expected a CausalLMPolicy that samples from all tokens, received a "
            f"{type(policy).__name__} with {getattr(policy, 'sampling', None)}"
        )
    if isinstance(envs, DialogueVectorEnv):
        raise ValueError("branches: expected texts of one turn, received an environment of dialogues")
