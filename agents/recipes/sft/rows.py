"""Examples as rows of tokens that know which of them are learned; over-long rows; what is held out.

A prompt's ids are those that `scripts.train_text` gives it, bare or in a chat, so that stage 3 begins where stage 1 was
taught to go on. A completion's ids are what the joint text has beyond them; where the tokenizer would merge the two,
the completion is tokenized apart, and such rows are counted. What is learned ends with the end-of-text token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agents.recipes.sft.data import Examples
from textenvs.tokens.chats import Turn, chat_ids, chat_text, plain_text
from textenvs.tokens.end_tokens import EndOfText, end_tokens
from textenvs.tokens.row_files import Row, at, hold_out
from textenvs.tokens.tokenizers import open_ids

OPENING = 8
"""Tokens of a text without prompt that samples begin with, or half of it if it is shorter than two openings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRow:
    """A row of tokens."""

    tokens: NDArray[np.int32]
    """``[L]``, at least two; the last one is learned."""
    spans: tuple[tuple[int, int], ...]
    """Begin and end of what is learned, in order; none begins at 0."""
    opening: int
    """Tokens that a sample begins with: those before anything is learned, or of a text the first few."""
    prompt: str
    """The same for people to read, without a template around it."""
    place: str
    """Where it came from: "my.jsonl:3"."""

    @property
    def num_learned(self) -> int:
        """Tokens that are learned."""
        return sum(end - begin for begin, end in self.spans)

    @property
    def prompt_key(self) -> bytes:
        """What must not be both trained on and held out: the prompt's tokens, or all of a text without one."""
        begins = self.spans[0][0]  # 1: after the start token, which is no prompt
        return (self.tokens if begins == 1 else self.tokens[:begins]).tobytes()

    def cut(self, length: int) -> TokenRow:
        """At most the first ``length`` tokens, up to the last learned one of them; ValueError if nothing learned is
        among them."""
        spans = tuple((begin, min(end, length)) for begin, end in self.spans if begin < length)
        if not spans:
            raise ValueError(
                f"{self.place}: the first {length} of its {len(self.tokens)} tokens are all prompt, so cutting leaves "
                "nothing to learn: shorten the prompt or skip such rows (--too-long skip)"
            )
        end = spans[-1][1]
        return replace(self, tokens=self.tokens[:end], spans=spans, opening=min(self.opening, end - 1))


class RowEncoder:
    """Turns examples into rows.

    Args:
        tokenizer: of the model.
        eos_token_id: the token, or tokens, that end what is learned; the tokenizer's is put behind texts without one.
        wrap: whether a prompt and its completion become a chat of two turns.
    """

    def __init__(self, tokenizer: Any, *, eos_token_id: EndOfText, wrap: bool = False) -> None:
        self.tokenizer, self.wrap = tokenizer, wrap
        self._ends = end_tokens(eos_token_id)
        own = getattr(tokenizer, "eos_token_id", None)
        self._appended = own if own in self._ends else self._ends[0]
        self.num_apart = 0
        """Rows so far with a part that was tokenized apart."""

    def __call__(self, examples: Examples) -> list[TokenRow]:
        """The rows of ``examples``.

        Raises:
            ValueError: naming the line, if a prompt has no tokens or the chat template cannot be followed; if plain
                text is to be wrapped.
        """
        if examples.kind == "texts":
            if self.wrap:
                raise ValueError("--chat-template: rows of plain text have no turns; leave it out")
            ids = self._ids(examples.rows, "text")
            return [self._text(*pair) for pair in zip(examples.rows, ids, strict=True)]
        plain = [row for row in examples.rows if not (self.wrap or "messages" in row.columns)]
        parts = iter(zip(plain, self._ids(plain, "prompt"), self._ids(plain, "prompt", "completion"), strict=True))
        return [
            self._chat(row, _turns(row)) if self.wrap or "messages" in row.columns else self._completion(*next(parts))
            for row in examples.rows
        ]

    def _ids(self, rows: list[Row], *columns: str) -> list[list[int]]:
        texts = ["".join(row.columns[name] for name in columns) for row in rows]
        try:
            found = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
            return [open_ids(self.tokenizer, text, ids) for text, ids in zip(texts, found, strict=True)]
        except Exception:
            for row, text in zip(rows, texts, strict=True):  # which one was it?
                with at(row.place):
                    self.tokenizer(text)
            raise

    def _text(self, example: Row, ids: list[int]) -> TokenRow:
        tokens = self._ended(ids)
        if len(tokens) < 2:
            raise ValueError(f"{example.place}: the text has no tokens")
        opening = max(1, min(OPENING, len(tokens) // 2))
        prompt = self.tokenizer.decode(tokens[:opening], skip_special_tokens=True)
        return _row(example, tokens, [(1, len(tokens))], opening, prompt)

    def _completion(self, example: Row, before: list[int], whole: list[int]) -> TokenRow:
        prompt, completion = example.columns["prompt"], example.columns["completion"]
        if not before:
            raise ValueError(f"{example.place}: the prompt {prompt!r} has no tokens; a prompt needs one token at least")
        apart = whole[: len(before)] != before
        if apart:
            whole = before + list(self.tokenizer(completion, add_special_tokens=False)["input_ids"])
        self.num_apart += apart
        if len(whole) == len(before):
            raise ValueError(f"{example.place}: the completion {completion!r} has no tokens")
        tokens = self._ended(whole)
        return _row(example, tokens, [(len(before), len(tokens))], len(before), prompt)

    def _chat(self, example: Row, turns: list[Turn]) -> TokenRow:
        tokens: list[int] = []
        spans, text, apart = [], "", False
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            asked, answered = self._written(example, turns, index, text)
            tokens, first = self._go_on(tokens, text, asked)
            begin = len(tokens)
            tokens, second = self._go_on(tokens, asked, answered)
            # What a template writes behind the end of text (a line's end) is never generated, so it is not learned.
            ends = [at for at in range(begin, len(tokens)) if tokens[at] in self._ends]
            spans.append((begin, ends[-1] + 1 if ends else len(tokens)))
            text, apart = answered, apart or first or second
        if any(begin == end for begin, end in spans):
            raise ValueError(f"{example.place}: the chat template drops what the assistant says")
        self.num_apart += apart
        begin, end = spans[-1]
        tokens = self._ended(tokens[:end])
        spans[-1] = (begin, len(tokens))
        first_answer = next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        return _row(example, tokens, spans, spans[0][0], plain_text(turns[:first_answer]))

    def _written(self, example: Row, turns: list[Turn], index: int, text: str) -> tuple[str, str]:
        """The chat up to where the assistant's turn ``index`` begins, and up to where it ends; both go on ``text``."""
        with at(example.place):
            asked = chat_text(self.tokenizer, turns[:index], answering=True)
            answered = chat_text(self.tokenizer, turns[: index + 1], answering=False)
        if asked.startswith(text) and not answered.startswith(asked):
            answered = self._thought(example, turns[index]["content"], asked, answered)
        if not (asked.startswith(text) and answered.startswith(asked)):
            several = sum(turn["role"] == "assistant" for turn in turns) > 1
            raise ValueError(
                f"{example.place}: with turn {index + 1} the chat template writes what was before it otherwise than "
                "before, so the prompt that is learned would not be the prompt that is answered: take a template that "
                f"only appends{', or rows with one answer each' if several else ''}"
            )
        return asked, answered

    def _thought(self, example: Row, content: str, asked: str, answered: str) -> str:
        """The answered chat where ``asked`` opens a block of thinking that the template leaves out of past answers."""
        opened = re.search(r"<(\w+)>\s*$", asked)
        if opened is None or answered.startswith(asked[: opened.start()] + opened[0].strip()):
            return answered
        said = content.strip().removeprefix(f"<{opened[1]}>").lstrip()
        if f"</{opened[1]}>" not in said:
            raise ValueError(
                f"{example.place}: the chat template opens <{opened[1]}> before each answer, and this one does not "
                f"close it: write answers as <{opened[1]}>...</{opened[1]}>..., or turn thinking off "
                """(--template-kwargs '{"enable_thinking": false}', if the template knows it)"""
            )
        _, found, behind = answered.rpartition(said.rpartition(f"</{opened[1]}>")[2].strip())
        return asked + said + behind if found else answered

    def _go_on(self, tokens: list[int], text: str, longer: str) -> tuple[list[int], bool]:
        """Ids of ``longer`` that begin with ``tokens``, those of ``text``; whether its rest was tokenized apart."""
        joint = chat_ids(self.tokenizer, longer)
        if joint[: len(tokens)] == tokens:
            return joint, False
        return tokens + chat_ids(self.tokenizer, longer[len(text) :]), True

    def _ended(self, tokens: list[int]) -> list[int]:
        return tokens if tokens and tokens[-1] in self._ends else [*tokens, self._appended]


def _turns(example: Row) -> list[Turn]:
    content = example.columns
    if "messages" in content:
        return list(content["messages"])
    said = ("user", content["prompt"]), ("assistant", content["completion"])
    return [{"role": role, "content": words} for role, words in said]


def _row(example: Row, tokens: list[int], spans: list[tuple[int, int]], opening: int, prompt: str) -> TokenRow:
    return TokenRow(
        tokens=np.array(tokens, dtype=np.int32), spans=tuple(spans), opening=opening, prompt=prompt, place=example.place
    )


def limit_rows(
    rows: list[TokenRow], max_length: int | None, too_long: Literal["refuse", "cut", "skip"]
) -> tuple[list[TokenRow], int]:
    """Rows of at most ``max_length`` tokens (None: any length), and how many were longer.

    Raises:
        ValueError: if there are longer ones and ``too_long`` is "refuse", or cutting one leaves nothing to learn, or
            skipping leaves no row.
    """
    longer = [row for row in rows if max_length is not None and len(row.tokens) > max_length]
    if not longer or max_length is None:
        return rows, 0
    if too_long == "refuse":
        raise ValueError(
            f"{longer[0].place}: a row of {len(longer[0].tokens)} tokens is longer than {max_length}, and so are "
            f"{len(longer) - 1} more: cut or skip such rows (--too-long), or allow more (--max-length)"
        )
    if too_long == "skip":
        kept = [row for row in rows if len(row.tokens) <= max_length]
        if not kept:
            raise ValueError(f"every row is longer than {max_length} tokens: allow more (--max-length)")
        return kept, len(longer)
    return [row.cut(max_length) for row in rows], len(longer)


def split_rows(rows: list[TokenRow], *, share: float, most: int, seed: int) -> tuple[list[TokenRow], list[TokenRow]]:
    """Training and held-out rows, ``(share of the rows, at least 1 and at most ``most``)``; no prompt is in both parts.

    Args:
        rows: to be divided.
        share: in (0, 1].
        most: rows held out.
        seed: chooses them.

    Raises:
        ValueError: if that cannot be done: too few rows, or one prompt for nearly all of them.
    """
    most = min(most, max(1, round(share * len(rows))))
    try:
        train, heldout = hold_out([row.prompt_key for row in rows], most, seed=seed)
    except ValueError as fault:
        raise ValueError(f"{fault}; or pass --heldout-data, or --heldout-share 0 to hold out none") from fault
    return [rows[number] for number in train], [rows[number] for number in heldout]


def check_vocabulary(rows: Sequence[TokenRow], vocab_size: int) -> None:
    """Raise ValueError, with the first row that holds another one, unless the model has an embedding for every
    token."""
    for row in rows:
        if int(row.tokens.max()) >= vocab_size:
            raise ValueError(
                f"{row.place}: token {int(row.tokens.max())} is not in the model's vocabulary [0, {vocab_size}): the "
                "tokenizer is not the model's"
            )
