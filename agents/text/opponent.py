"""A copy of a policy as the other side of a game for two; see ``textenvs.tasks.text_arena``."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from textenvs.dialogues.bridge import Bridge
from textenvs.tokens.chats import Turn
from textenvs.tokens.rows import PAD


class PolicyOpponent:
    """Plays by a copy of a policy, which training leaves as it is until `update`.

    It reads its dialogue as the same tokens that the policy reads in its own, and writes one turn at a time.

    Args:
        policy: copied now.
        tokenizer: the environment's, as are the next two.
        max_turn_tokens: budget of a turn, tokens.
        chat: write turns in the tokenizer's chat template; None: if it has one.
        deterministic: take the likeliest token; else samples follow Python's global generator, in a game its own.
    """

    def __init__(
        self,
        policy: CausalLMPolicy,
        tokenizer: Any,
        *,
        max_turn_tokens: int = 32,
        chat: bool | None = None,
        deterministic: bool = False,
    ) -> None:
        self._bridge = Bridge(tokenizer, policy.eos_token_id, policy.vocab_size, chat=chat)
        self.tokenizer, self.max_turn_tokens, self.deterministic = tokenizer, max_turn_tokens, deterministic
        self.update(policy)

    def update(self, policy: CausalLMPolicy) -> None:
        """Play by a copy of ``policy`` from now on."""
        self._policy = copy.deepcopy(policy)

    def __call__(self, turns: list[Turn]) -> str:
        """The text of the next turn, behind ``turns`` of the game ("user") and its own ("assistant").

        Raises:
            ValueError: the dialogue and a turn are longer than the model's positions.
        """
        row = self._bridge.first(turns[0]["content"])
        for said, seen in zip(turns[1::2], turns[2::2], strict=True):
            own = np.array(self.tokenizer(said["content"], add_special_tokens=False)["input_ids"], dtype=np.int64)
            row = np.concatenate([row, own, self._bridge.between(own, seen["content"], answering=True)])
        written = (
            generate(
                self._policy,
                torch.from_numpy(row)[None].to(self._policy.device),
                max_new_tokens=self.max_turn_tokens,
                generator=torch.Generator().manual_seed(random.getrandbits(63)),
                deterministic=self.deterministic,
                with_values=False,
            )
            .completions[0]
            .cpu()
            .numpy()
        )
        text = self._bridge.action(written[written != PAD])
        assert isinstance(text, str)
        return text
