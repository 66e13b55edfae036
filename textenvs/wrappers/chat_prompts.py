"""Prompts as turns of a chat, in the tokenizer's own template, and back to what was said."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from textenvs.tokens.chats import Turn, chat_ids, chat_text, plain_prompt
from textenvs.wrappers.scorers import takes_finished


class ChatTemplate:
    """Turns a prompt into the token ids of a chat in which the assistant is about to answer.

    It stands where a tokenizer of prompts is called for. It remembers what it turned, so that scorers, judge and people
    read what was said and not the template around it.

    Args:
        tokenizer: of the model.
        wrap: whether a text becomes the user's turn of a chat; else it stays as it is, and only turns make a chat.

    Raises:
        ValueError: if the tokenizer has no template: its model was not trained on chats.
    """

    def __init__(self, tokenizer: Any, *, wrap: bool = True) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "--chat-template: the model's tokenizer has no chat template; leave the flag out, or take a model that "
                "was trained on chats (an instruct model)"
            )
        self.tokenizer, self.wrap = tokenizer, wrap
        self._said: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, prompt: str | Sequence[Turn]) -> dict[str, list[int]]:
        """``{"input_ids": ...}`` of the chat up to where the assistant's words begin.

        Raises:
            ValueError: if the template refuses the turns.
        """
        if isinstance(prompt, str):
            if not self.wrap:
                return {"input_ids": self.tokenizer(prompt)["input_ids"]}
            prompt = [{"role": "user", "content": prompt}]
        ids = chat_ids(self.tokenizer, chat_text(self.tokenizer, prompt, answering=True))
        decoded = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._said[decoded] = plain_prompt(prompt)
        return {"input_ids": ids}

    @property
    def heard(self) -> bool:
        """Whether any prompt became a chat."""
        return bool(self._said)

    def said(self, decoded: Sequence[str]) -> list[str]:
        """What was said in each decoded prompt, with a line's end before the answer; others stay as they are."""
        return [self._said.get(prompt, prompt) for prompt in decoded]

    def scorer(self, scorer: Any) -> Any:
        """``scorer`` on what was said and what the model answered; of an ensemble, each member."""
        members = getattr(scorer, "members", None)
        if members:
            return SimpleNamespace(members=tuple(self.scorer(member) for member in members))
        asks = takes_finished(scorer)

        def score(prompts: Sequence[str], completions: Sequence[str], *, finished: Sequence[bool]) -> Any:
            return scorer(self.said(prompts), completions, **({"finished": finished} if asks else {}))

        return score
