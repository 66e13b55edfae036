"""From an environment's texts to tokens and back, so that what was sampled is never written anew.

A row begins with the first observation. Behind the agent's tokens of a turn comes the bridge: the end of its turn,
unless the agent sampled that itself, the next observation, and what a chat template writes before the next answer. The
template's parts are found by rendering a chat and taking what stands behind the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from textenvs.tokens.chats import Turn, as_turns, chat_ids, chat_text, is_chat, plain_prompt
from textenvs.tokens.end_tokens import EndOfText, end_tokens
from textenvs.tokens.rows import Ids
from textenvs.tokens.tokenizers import Tokenizer, open_ids

Observation = Any
"""What an environment wrote: a string, a list of turns, or without a tokenizer a list of token ids."""

ANSWER = "An-answer-{}."
"""Text of the made-up answers in a rendered chat."""

MOST_KNOWN = 4096
"""Observations whose ids are kept."""


class Bridge:
    """Tokens of observations, and text of what the agent said.

    Args:
        tokenizer: None: observations and actions are token ids themselves.
        eos_token_id: tokens that end a turn.
        vocab_size: of token ids.
        chat: write turns in the tokenizer's chat template; None: if it has one. Without, texts follow one another as
            they are, and the end of a turn is the first of the end tokens.

    Raises:
        ValueError: no template; a template that writes earlier turns in another way once a chat goes on.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, eos_token_id: EndOfText, vocab_size: int, *, chat: bool | None = None
    ) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.ends = end_tokens(eos_token_id)
        self._known: dict[tuple[str, bool], list[int]] = {}
        self.chat = bool(getattr(tokenizer, "chat_template", None)) if chat is None else chat
        if self.chat:
            assert tokenizer is not None
            check_template(tokenizer)
        self.takes_tool_turns = self.chat and _takes_tool_turns(tokenizer)

    def first(self, observation: Observation, tools: Sequence[Any] = (), system: str = "") -> Ids:
        """Tokens of the first observation, up to where the agent's first turn begins; at least one.

        ``tools``, JSON schemas, are written by the chat template if it takes them. Or else ``system`` is in a turn of
        that role, or where a template rejects it or a chat has one, before the first turn's text.

        Raises:
            ValueError: an observation of another type, or without a token.
        """
        if self.tokenizer is None:
            return self._ids(observation)
        if self.chat:
            turns = self._turns(observation)
            text = chat_text(self.tokenizer, turns, answering=True, tools=tools)
            if system and text == chat_text(self.tokenizer, turns, answering=True):
                text = _with_system(self.tokenizer, turns, system)
            return np.array(chat_ids(self.tokenizer, text), dtype=np.int64)
        text = as_text(observation)
        return _some(open_ids(self.tokenizer, f"{system}\n{text}" if system else text), observation)

    def between(self, said: Ids, observation: Observation, *, answering: bool) -> Ids:
        """Tokens behind the agent's ``said [R]``; with `answering`, up to where its next turn begins. Errors as above.

        The end of the turn is not written twice where ``said`` has it.
        """
        closed = bool(len(said)) and int(said[-1]) in self.ends
        if self.chat:
            written = self._in_chat(observation, answering)
            same = closed and written[:1] == [int(said[-1])]
            return np.array(written[1:] if same else written, dtype=np.int64)
        if self.tokenizer is None:
            ids = self._ids(observation).tolist()
        else:
            ids = self._plain("\n" * is_chat(observation) + as_text(observation))
        return np.array(ids if closed else [*self.ends[:1], *ids], dtype=np.int64)

    def _in_chat(self, observation: Observation, answering: bool) -> list[int]:
        """Ids of what stands behind an answer; those of strings, which mostly come again, are kept."""
        assert self.tokenizer is not None
        key = (observation, answering) if isinstance(observation, str) else None
        if key is None or key not in self._known:
            found = chat_ids(self.tokenizer, _behind_answer(self.tokenizer, self._turns(observation), answering))
            return found if key is None else self._keep(key, found)
        return self._known[key]

    def _plain(self, text: str) -> list[int]:
        if (text, False) in self._known:
            return self._known[text, False]
        tokenizer: Any = self.tokenizer
        ids = list(tokenizer(text, **_without_special(tokenizer))["input_ids"])
        return self._keep((text, False), _some(ids, text).tolist())

    def _keep(self, key: tuple[str, bool], ids: list[int]) -> list[int]:
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[key] = ids
        return ids

    def action(self, said: Ids) -> str | tuple[int, ...]:
        """What the environment's `step` gets: text, or token ids, of ``said [R]`` without the end of the turn."""
        ids = [int(token) for token in said if token not in self.ends]
        if self.tokenizer is None:
            return tuple(ids)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def turns(self, observation: Observation) -> list[Turn]:
        """An observation as turns of a chat, for scorers and people."""
        return [] if self.tokenizer is None else _as_chat(observation)

    def _turns(self, observation: Observation) -> list[Turn]:
        """As the template takes them: without a tool's turns, those are one of the user."""
        turns: list[Turn] = []
        for turn in _as_chat(observation):
            if turn["role"] != "tool" or self.takes_tool_turns:
                turns.append(turn)
            elif turns and turns[-1]["role"] == "user":  # many templates want user and assistant to alternate
                turns[-1] = {"role": "user", "content": f"{turns[-1]['content']}\n{turn['content']}"}
            else:
                turns.append({"role": "user", "content": turn["content"]})
        return turns

    def _ids(self, observation: Observation) -> Ids:
        try:
            ids = np.array(observation, dtype=np.int64)
        except (TypeError, ValueError):
            ids = np.zeros((0, 0), dtype=np.int64)
        if ids.ndim != 1 or not ids.size or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(
                f"without a tokenizer, expected an observation of ids in [0, {self.vocab_size}), received "
                f"{observation!r:.200}"
            )
        return ids


def check_template(tokenizer: Tokenizer) -> None:
    """Raise ValueError unless a longer chat begins, in the tokenizer's template, with what was written of it before."""
    turns: list[Turn] = [{"role": "user", "content": "A question."}]
    before = chat_text(tokenizer, turns, answering=True)
    for number in range(2):
        answer = ANSWER.format(number)
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Another one."}]
        after = chat_text(tokenizer, turns, answering=True)
        if not after.startswith(before + answer):
            wanted = before + answer
            place = next((i for i, (a, b) in enumerate(zip(wanted, after, strict=False)) if a != b), len(after))
            raise ValueError(
                f"chat template: expected it to leave turns as they are once a chat goes on; before turn "
                f"{2 * number + 2} it wrote {before[place - 20 : place + 40]!r}, and afterwards "
                f"{after[place - 20 : place + 40]!r}. Tokens of a dialogue are never written anew: pass chat=False, or "
                "a template that keeps history"
            )
        before = after


def _behind_answer(tokenizer: Tokenizer, observation: Sequence[Turn], answering: bool) -> str:
    answer = ANSWER.format("")
    chat = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": answer}, *observation]
    return chat_text(tokenizer, chat, answering=answering).rpartition(answer)[2]


def _takes_tool_turns(tokenizer: Any) -> bool:
    """Whether the template writes what a tool returned; some reject its role, and some leave it out."""
    result = "A-result."
    try:
        return result in _behind_answer(tokenizer, [{"role": "tool", "content": result}], answering=True)
    except ValueError:
        return False


def _with_system(tokenizer: Tokenizer, turns: list[Turn], system: str) -> str:
    within = [{"role": turns[0]["role"], "content": f"{system}\n\n{turns[0]['content']}"}, *turns[1:]]
    if turns[0]["role"] != "system":
        try:
            return chat_text(tokenizer, [{"role": "system", "content": system}, *turns], answering=True)
        except ValueError:
            pass
    return chat_text(tokenizer, within, answering=True)


def _as_chat(observation: Observation) -> list[Turn]:
    if isinstance(observation, str):
        return [{"role": "user", "content": observation}]
    if isinstance(observation, Sequence):
        return as_turns(list(observation), "observation")
    return [{"role": "user", "content": as_text(observation)}]


def as_text(observation: Observation) -> str:
    """A string, or the contents of a chat's turns, a line each; ValueError for anything else."""
    if is_chat(observation):
        return plain_prompt(as_turns(list(observation), "observation"))
    if not isinstance(observation, str):
        raise ValueError(f"expected an observation that is text, received {observation!r:.200}")
    return observation


def _some(ids: Sequence[int], observation: Observation) -> Ids:
    if not ids:
        raise ValueError(f"expected an observation of a token or more, received {observation!r}")
    return np.array(ids, dtype=np.int64)


def _without_special(tokenizer: Any) -> dict[str, bool]:
    return {"add_special_tokens": False} if hasattr(tokenizer, "all_special_ids") else {}
