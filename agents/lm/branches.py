"""Other tokens in the states of texts that were written: drawn from the policy, and the critic's value after each.

A critic that reads tokens knows the value of a state that nobody was in. All branches of a row are read in one pass:
the row, then a token for each branch, which attends to the row up to its state and to itself.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decision_states import Decisions, spread
from textenvs.lm.packed_attention import has_full_attention
from textenvs.lm.packed_forward import few_tokens, without_dropout
from textenvs.tokens.end_tokens import end_tensor

BRANCHES = "reads_branches"
"""Attribute of a trunk that caches the result of a test."""
PASS_TOKENS = 2**13
"""Tokens of rows and branches in one pass."""


class Branches(NamedTuple):
    """K other tokens in each state, ``[B, T, K]`` each; anything where the rollout's mask is False."""

    tokens: Tensor
    """as the policy draws them, so that one may be the token that was taken"""
    logprobs: Tensor
    """nats, of the policy"""
    ref_logprobs: Tensor
    """nats, of the reference"""
    values: Tensor
    """V of the state after each, reward units"""
    ends: Tensor
    """bool, the token would end the text, so that its value is the reward's and not the critic's to tell"""


@torch.no_grad()
def draw_branches(
    policy: CausalLMPolicy,
    reference: CausalLMPolicy,
    observations: Tensor,
    actions: Tensor,
    mask: Tensor,
    *,
    noise: Tensor,
) -> Branches:
    """Draw K tokens in each of the N states that ``mask`` selects, independently and from the whole distribution.

    The policy has a critic; ``observations``, ``actions`` and ``mask`` are as in `CausalLMPolicy.evaluate`. ``noise
    [N, K]`` are uniform numbers in [0, 1), one a token, by state in the order of rows. ValueError if the critic's
    trunk does not read branches, see ``branch_states``.
    """
    decisions = Decisions.find(observations, actions, mask)
    with policy.forward_context():
        hidden = decisions.states(policy.trunk)
        tokens, logprobs = policy.token_head.draw(hidden, decisions.steps, noise)
    with reference.forward_context():
        ref_hidden = decisions.states(reference.trunk)
        ref_logprobs, _ = reference.token_head.logprobs_and_entropy(ref_hidden, tokens, decisions.steps)
    with policy.forward_context(), policy.critic_context() as trunk:
        values = policy.value_of(branch_states(trunk, decisions, tokens).flatten(0, 1)).view_as(logprobs)
    ends = torch.isin(tokens, end_tensor(policy.eos_token_id, tokens.device))
    return Branches(*(spread(each, mask) for each in (tokens, logprobs, ref_logprobs, values, ends)))


def branch_states(trunk: nn.Module, decisions: Decisions, tokens: Tensor) -> Tensor:
    """``[N, K, D]`` last hidden states at ``tokens [N, K]``, each read right after the state of its decision.

    Raises:
        ValueError: unless ``reads_branches(trunk)``.
    """
    if not reads_branches(trunk):
        raise ValueError(
            "branches: expected a model whose layers attend to all earlier tokens and take a four-dimensional mask, "
            f"received a {type(trunk).__name__}: leave branches at 0"
        )
    return _states(trunk, decisions.rows, decisions.row, decisions.position, tokens)


def _states(trunk: Any, rows: Tensor, row: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
    count = tokens.shape[1]
    numbers = torch.bincount(row, minlength=len(rows))
    found = []
    # Rows are in order, and so are their decisions.
    for begin, end in few_tokens(rows.shape[1] + count * numbers, PASS_TOKENS):
        here = (row >= begin) & (row < end)
        if bool(here.any()):
            found.append(_read(trunk, rows[begin:end], row[here] - begin, position[here], tokens[here]))
    return torch.cat(found)


def _read(trunk: Any, rows: Tensor, row: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
    """One pass over ``rows [R, W]`` and their branches, side by side in S further columns."""
    (number, width), count, device = rows.shape, tokens.shape[1], rows.device
    order = torch.arange(len(row), device=device)
    first = torch.searchsorted(row, torch.arange(number, device=device))
    column = order - first[row]  # of a decision among its row's
    steps = int(column.max()) + 1
    states = torch.zeros(number, steps, dtype=torch.int64, device=device)
    states[row, column] = position
    branched = torch.zeros(number, steps, count, dtype=torch.int64, device=device)
    branched[row, column] = tokens
    states = states.repeat_interleave(count, dim=1)  # [R, S] position of each branch's state
    along = torch.arange(width, device=device)
    mask = torch.zeros(number, 1, width + steps * count, width + steps * count, dtype=torch.bool, device=device)
    mask[:, 0, :width, :width] = along <= along[:, None]
    mask[:, 0, width:, :width] = along <= states[..., None]
    mask[:, 0, width:, width:] = torch.eye(steps * count, dtype=torch.bool, device=device)
    hidden = trunk(
        input_ids=torch.cat([rows.clamp(min=0), branched.flatten(1)], dim=1),
        attention_mask=mask,
        position_ids=torch.cat([along.expand(number, width), states + 1], dim=1),
        use_cache=False,
    ).last_hidden_state
    return hidden[:, width:].unflatten(1, (steps, count))[row, column]


@torch.no_grad()
def reads_branches(trunk: Any) -> bool:
    """Whether ``trunk`` reads branches as it reads whole rows; found on a few short ones, once."""
    if not hasattr(trunk, BRANCHES):
        setattr(trunk, BRANCHES, _test(trunk))
    return bool(getattr(trunk, BRANCHES))


def _test(trunk: Any) -> bool:
    takes = inspect.signature(trunk.forward).parameters
    if not has_full_attention(trunk.config) or not {"position_ids", "attention_mask"} <= takes.keys():
        return False
    rows = torch.arange(12, device=trunk.device).view(2, 6) % min(7, trunk.config.vocab_size)
    row, position = rows.new_tensor([0, 0, 1]), rows.new_tensor([1, 4, 2])
    tokens = rows.new_tensor([[1, 2], [3, 0], [2, 2]])
    with without_dropout(trunk):
        found = _read(trunk, rows, row, position, tokens)
        for at, (of, place) in enumerate(zip(row.tolist(), position.tolist(), strict=True)):
            whole = torch.cat([rows[of, : place + 1].expand(2, -1), tokens[at][:, None]], dim=1)
            read = trunk(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False).last_hidden_state[
                :, -1
            ]
            if not torch.allclose(found[at], read, rtol=1e-3, atol=1e-3):
                return False
    return True
