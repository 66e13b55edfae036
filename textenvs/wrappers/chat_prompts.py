"""Prompts as turns of a chat in the tokenizer's template, and from decoded prompts back to plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from textenvs.tokens.chats import Turn, chat_ids, chat_text, plain_prompt
from textenvs.tokens.tokenizers import Tokenizer, open_ids
from textenvs.wrappers.interfaces import Scorer, TextScorer


class ChatTemplate:
    """Tokenizes a prompt as a chat in which the assistant's answer is next; a drop-in for a prompt tokenizer.

    It remembers each prompt's plain text, so that scorers, judge and people read it without the template. With ``wrap``
    a text becomes the user's turn of a chat; else only lists of turns make a chat.

    Raises:
        ValueError: the tokenizer has no template: its model was not trained on chats.
    """

    def __init__(self, tokenizer: Tokenizer, *, wrap: bool = True) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "--chat-template: the model's tokenizer has no chat template; leave the flag out, or take a model that "
                "was trained on chats (an instruct model)"
            )
        self.tokenizer, self.wrap = tokenizer, wrap
        self._plain: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, prompt: str | Sequence[Turn], /) -> dict[str, list[int]]:
        """``{"input_ids": ...}`` of the chat up to the beginning of the assistant's answer.

        Raises:
            ValueError: the template rejects the turns.
        """
        if isinstance(prompt, str):
            if not self.wrap:
                return {"input_ids": open_ids(self.tokenizer, prompt)}
            prompt = [{"role": "user", "content": prompt}]
        ids = chat_ids(self.tokenizer, chat_text(self.tokenizer, prompt, answering=True))
        decoded = self.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._plain[str(decoded)] = plain_prompt(prompt)
        return {"input_ids": ids}

    def decode(self, token_ids: list[int], **kwargs: Any) -> str | list[str]:
        """The tokenizer's decoding."""
        return self.tokenizer.decode(token_ids, **kwargs)

    @property
    def has_chats(self) -> bool:
        """Whether any prompt became a chat."""
        return bool(self._plain)

    def plain(self, decoded: Sequence[str]) -> list[str]:
        """Plain text of each decoded chat prompt, with a line break before the answer; other prompts as they are."""
        return [self._plain.get(prompt, prompt) for prompt in decoded]

    def scorer(self, scorer: Scorer) -> Scorer:
        """``scorer`` on plain prompts and completions; of an ensemble, each member."""
        if members := getattr(scorer, "members", None):
            return _Ensemble(tuple(self._plain_scorer(member) for member in members))
        return self._plain_scorer(scorer)

    def _plain_scorer(self, scorer: Any) -> TextScorer:
        @wraps(scorer, updated=())
        def score(*texts: Any, **named: Any) -> Any:
            if texts:
                return scorer(self.plain(texts[0]), *texts[1:])
            return scorer(**{name: self.plain(each) if name == "prompts" else each for name, each in named.items()})

        vars(score)["threaded"] = getattr(scorer, "threaded", False)
        return score


@dataclass(frozen=True)
class _Ensemble:
    members: tuple[TextScorer, ...]
