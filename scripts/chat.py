"""Prompts as the user's turn of a chat, in the tokenizer's own template, and back to what the user said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError


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
        ids = self.ids_of(self.text_of([{"role": "user", "content": text}], answering=True))
        self._said[self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)] = text
        return {"input_ids": ids}

    def text_of(self, turns: Sequence[dict[str, str]], *, answering: bool) -> str:
        """The chat as the template writes it, up to where the assistant's words begin if it is ``answering``.

        Raises:
            ValueError: if the template refuses these turns.
        """
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answering))
        except TemplateError as fault:
            raise ValueError(f"the chat template refuses these turns: {fault}") from fault

    def ids_of(self, text: str) -> list[int]:
        """Token ids of a chat's text; its special tokens are the template's own, none are added."""
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def said(self, decoded: Sequence[str]) -> list[str]:
        """What the user said in each decoded prompt, with a line's end before the answer; others stay as they are."""
        return [f"{self._said[prompt]}\n" if prompt in self._said else prompt for prompt in decoded]

    def scorer(self, scorer: Callable[..., Any]) -> Callable[[Sequence[str], Sequence[str]], Any]:
        """``scorer`` on what the user said and what the model answered."""

        def score(prompts: Sequence[str], completions: Sequence[str]) -> Any:
            return scorer(self.said(prompts), completions)

        return score
