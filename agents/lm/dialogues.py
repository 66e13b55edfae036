"""Batched decoding of dialogues: turns that the policy samples, and between them what environments answer.

Every running row samples a token in each step. Rows that only have that token to read are read together, and those that
were answered read their whole observation in one more pass; the cache is kept across turns. The results equal a full
forward pass of the finished rows (tested).
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decision_states import states_at_ends
from agents.lm.decoder import Generation, Noise, check_max_concurrent_rows, check_prompts
from agents.lm.sampling import sample_tokens
from textenvs.dialogues.vector import Answers
from textenvs.lm.kv_cache import any_key_order
from textenvs.lm.linear_kernels import cache_keyword
from textenvs.lm.packed_forward import pack_rows
from textenvs.lm.row_cache import RowCache
from textenvs.lm.sizes import sizes
from textenvs.tokens.end_tokens import end_tensor
from textenvs.tokens.rows import PAD, Ids


class Dialogue(Protocol):
    """What answers turns: `textenvs.DialogueVectorEnv`."""

    max_tokens: int
    """Of a row, prompt and answers included."""

    def answer(self, indices: Ids, said: list[Ids]) -> Answers:
        """The answers to turns of rows ``indices [K]``, which have just ended, with their tokens."""


class OneTurn:
    """Answers nothing: a dialogue is over after a turn."""

    max_tokens = sys.maxsize

    def answer(self, indices: Ids, said: list[Ids]) -> Answers:
        """The end."""
        return Answers(np.zeros((len(indices), 0), dtype=np.int64), np.ones(len(indices), dtype=np.bool_))


class Rows:
    """The completions of B rows, which policy and environments write in turn.

    ``prompt_lengths [B]`` are tokens, ``width`` is T, those of the longest completion, ``ends`` the tokens that end a
    turn, ``first`` the number of the first row among those of ``dialogue``, which answers.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        prompt_lengths: Tensor,
        width: int,
        *,
        max_turn_tokens: int,
        ends: Tensor,
        first: int = 0,
    ) -> None:
        batch, device = len(prompt_lengths), prompt_lengths.device
        self.dialogue, self.max_turn_tokens, self.ends, self.first = dialogue, max_turn_tokens, ends, first
        self.room = dialogue.max_tokens - prompt_lengths
        """``[B]`` most tokens of the completion."""
        self.tokens = torch.full((batch, width), PAD, dtype=torch.int64, device=device)
        self.sampled = torch.zeros(batch, width, dtype=torch.bool, device=device)
        """``[B, T]`` True on tokens of the policy."""
        self.filled, self.steps, self.in_turn = torch.zeros(3, batch, dtype=torch.int64, device=device)
        """``[B]`` tokens of the completion; of them sampled; of them in the current turn."""
        self.ended = torch.zeros(batch, dtype=torch.bool, device=device)

    def append(self, index: Tensor, tokens: Tensor) -> None:
        """Append one sampled token ``[N]`` to rows ``index [N]``, and the answer where it ends a turn."""
        place = index, self.filled[index]
        self.tokens[place], self.sampled[place] = tokens, True
        for count in (self.filled, self.steps, self.in_turn):
            count[index] += 1
        full = (self.in_turn[index] >= self.max_turn_tokens) | (self.filled[index] >= self.room[index])
        over = index[torch.isin(tokens, self.ends) | full]
        if len(over):
            self._answer(over)

    def _answer(self, index: Tensor) -> None:
        filled, begun = self.filled[index].tolist(), (self.filled - self.in_turn)[index].tolist()
        written = self.tokens[index].cpu().numpy()
        said = [row[begin:end] for row, begin, end in zip(written, begun, filled, strict=True)]
        answers = self.dialogue.answer(index.cpu().numpy() + self.first, said)
        for row, (end, tokens) in enumerate(zip(filled, answers.tokens, strict=True)):
            own = tokens[tokens != PAD]
            written[row, end : end + len(own)] = own
        self.tokens[index] = torch.from_numpy(written).to(index.device)
        self.filled[index] += torch.from_numpy((answers.tokens != PAD).sum(1)).to(index.device)
        self.ended[index] = torch.from_numpy(np.asarray(answers.ended)).to(index.device)
        self.in_turn[index] = 0


class Reader:
    """Hidden states of rows that grow by any number of tokens at a time; of all but the newest from a cache."""

    def __init__(self, policy: CausalLMPolicy, slots: int, width: int) -> None:
        self.trunk, self.num_slots = policy.trunk, slots
        self.cache = RowCache(slots, width) if any_key_order(policy.trunk) else None
        self.cache_keyword = cache_keyword(self.trunk)

    def read(self, slots: Tensor, rows: Tensor, read: Tensor) -> Tensor:
        """States ``[N, D]`` at the ends of ``rows [N, W]``, of which the first ``read [N]`` tokens are in the cache.

        ``slots [N]`` are the rows' places in it, each at most once; rows are right-padded with PAD.
        """
        if self.cache is None:
            return states_at_ends(self.trunk, rows)
        lengths = (rows != PAD).sum(1)
        one = lengths - read == 1
        at_once = max(1, sizes(rows.device).prefill_tokens // int((lengths - read).max()))
        parts = [part for part in (one.nonzero()[:, 0], *(~one).nonzero()[:, 0].split(at_once)) if len(part)]
        states = [self._pass(slots[part], rows[part], read[part], lengths[part]) for part in parts]
        return torch.cat(states)[torch.cat(parts).argsort()]

    def _pass(self, slots: Tensor, rows: Tensor, read: Tensor, lengths: Tensor) -> Tensor:
        assert self.cache is not None
        positions = read[:, None] + torch.arange(int((lengths - read).max()), device=rows.device)
        tokens = rows.gather(1, positions.clamp(max=rows.shape[1] - 1)).clamp(min=0)
        order = slots.argsort()  # of all slots, in its own order, the cache gives a view
        self.cache.append(None if len(slots) == self.num_slots else slots[order], positions[order], int(lengths.max()))
        cache: dict[str, Any] = {self.cache_keyword: self.cache}
        out = self.trunk(
            input_ids=tokens[order],
            attention_mask=self.cache.mask,
            position_ids=self.cache.position_ids,
            use_cache=True,
            **cache,
        )
        last = (lengths - read - 1)[order]
        states = out.last_hidden_state[torch.arange(len(last), device=last.device), last]
        return torch.empty_like(states).index_copy_(0, order, states)


def generate_dialogues(
    policy: CausalLMPolicy,
    prompts: Tensor,
    dialogue: Dialogue,
    *,
    max_turn_tokens: int,
    generator: torch.Generator | None,
    deterministic: bool,
    max_concurrent_rows: int | None,
    other_rows: tuple[int, int],
) -> Generation:
    """One dialogue from every first observation ``prompts [B, P]``: ``[B, max_tokens - 1]``; log-probs and values are 0
    on what environments wrote.

    Other arguments are as in ``agents.lm.generation.generate``, with one uniform number per row and sampled token.
    """
    if policy.sampling.min_new_tokens:
        raise ValueError(
            "min_new_tokens: expected 0 in dialogues, since it is of a whole text, received "
            f"{policy.sampling.min_new_tokens}"
        )
    lengths = (prompts != PAD).sum(1)
    batch, device, width = len(prompts), prompts.device, dialogue.max_tokens
    check_prompts(policy, lengths, width - int(lengths.max()), None)
    check_max_concurrent_rows(max_concurrent_rows)
    at_once = batch if max_concurrent_rows is None else min(max_concurrent_rows, batch)
    ends, first = end_tensor(policy.eos_token_id, device), other_rows[0]
    talk = Rows(dialogue, lengths, width - 1, max_turn_tokens=max_turn_tokens, ends=ends, first=first)
    logprobs_out = torch.zeros(talk.tokens.shape, device=device)
    values_out = torch.zeros_like(logprobs_out)
    noise = Noise(batch, talk.tokens.shape[1], generator, device, other_rows)
    reader = Reader(policy, at_once, width)
    slot, read = torch.zeros(2, batch, dtype=torch.int64, device=device)
    rows, begun = lengths[:0], 0
    while True:
        rows = rows[~talk.ended[rows]]
        if begun < batch:
            joining = torch.arange(begun, min(batch, begun + at_once - len(rows)), device=device)
            taken = torch.isin(torch.arange(at_once, device=device), slot[rows])
            slot[joining] = (~taken).nonzero()[: len(joining), 0]
            rows, begun = torch.cat([rows, joining]), begun + len(joining)
        if not len(rows):
            break
        texts = pack_rows(prompts[rows], talk.tokens[rows])
        hidden = reader.read(slot[rows], texts, read[rows])
        read[rows] = lengths[rows] + talk.filled[rows]
        logits = policy.sampling.shape(policy.head_logits(hidden), 0, policy.eos_token_id)
        tokens, logprobs = sample_tokens(logits, None if deterministic else noise.of(rows, talk.steps[rows]))
        place = rows, talk.filled[rows]
        logprobs_out[place] = logprobs
        if policy.critic == "shared":
            values_out[place] = policy.value_of(hidden)
        talk.append(rows, tokens)
    noise.rewind(int(talk.steps.max()))
    if policy.has_critic and policy.critic != "shared":
        values_out = policy.completion_values(prompts, talk.tokens, talk.sampled)
    return Generation(talk.tokens, logprobs_out, values_out)
