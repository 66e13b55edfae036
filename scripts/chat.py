"""Prompts as the user's turn of a chat, in the tokenizer's own template, and back to what the user said."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from textenvs.scorers import takes_finished


class ChatTemplate:
    """Turns a text into the token ids of a chat in which the user says it and the assistant is about to answer.

    It stands where a tokenizer of prompts is called for. It remembers what it turned, so that scorers, judge and people
    read what the user said and not the template around it.

    Args:
        tokenizer: of the model.

    Raises:
        ValueError: if the tokenizer has no template: its model was not trained on chats.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "--chat-template: the model's tokenizer has no chat template; leave the flag out, or take a model that "
                "was trained on chats (an instruct model)"
            )
        self.tokenizer = tokenizer
        self._said: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, text: str) -> dict[str, list[int]]:
        """``{"input_ids": ...}`` of the chat up to where the assistant's words begin."""
        turn = [{"role": "user", "content": text}]
        whole = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = [int(token) for token in self.tokenizer(whole, add_special_tokens=False)["input_ids"]]
        self._said[self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)] = text
        return {"input_ids": ids}

    def said(self, decoded: Sequence[str]) -> list[str]:
        """What the user said in each decoded prompt, with a line's end before the answer; others stay as they are."""
        return [f"{self._said[prompt]}\n" if prompt in self._said else prompt for prompt in decoded]

    def scorer(self, scorer: Any) -> Any:
        """``scorer`` on what the user said and what the model answered; of an ensemble, each member."""
        members = getattr(scorer, "members", None)
        if members:
            return SimpleNamespace(members=tuple(self.scorer(member) for member in members))
        asks = takes_finished(scorer)

        def score(prompts: Sequence[str], completions: Sequence[str], *, finished: Sequence[bool]) -> Any:
            return scorer(self.said(prompts), completions, **({"finished": finished} if asks else {}))

        return score
