"""Prompts from lists, text files or JSONL files, validated when read, and the order they are drawn in."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from textenvs.tokens.chats import Turn, chat_ids, chat_text, check_turns, is_chat, question_of
from textenvs.tokens.rows import Ids, pad_rows
from textenvs.tokens.tokenizers import Tokenizer

Prompt: TypeAlias = "str | Sequence[int] | Sequence[Turn]"
PromptSource: TypeAlias = "str | os.PathLike[str] | Iterable[Prompt] | Prompts"


@dataclass(frozen=True)
class Prompts:
    """M tokenized prompts with the places they were read from."""

    tokens: Ids
    """``[M, P]`` right-padded with PAD."""
    lengths: Ids
    """``[M]`` tokens."""
    places: tuple[str, ...]
    """M names for messages: "prompts.txt:3", or "prompts[2]" for a list."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, part: slice) -> Prompts:
        """A slice of the prompts, of the same width."""
        return Prompts(self.tokens[part], self.lengths[part], self.places[part])

    def fingerprint(self) -> int:
        """A checksum of the tokens, compared when a saved state is loaded."""
        return zlib.crc32(self.tokens.tobytes())


def load_prompts(
    source: PromptSource, tokenizer: Tokenizer | None = None, *, vocab_size: int, max_tokens: int | None = None
) -> Prompts:
    """Read, tokenize and check prompts.

    Args:
        source: path of a text file (one prompt a line; blank lines are skipped) or of a ``.jsonl`` file (one object a
            line, its field ``prompt`` a string, a list of token ids or a chat, or its field ``messages`` a chat), an
            iterable of such prompts, or `Prompts`. A chat is a list of turns, objects with role and content; an answer
            of the assistant at its end is dropped. A ``str`` is a path; pass a single prompt as a list.
        tokenizer: of strings, and of chats through its chat template; without ``apply_chat_template`` it is called with
            the turns. None if all prompts are token ids.
        vocab_size, max_tokens: limits of token ids and of a prompt's tokens; None allows any number.

    Raises:
        ValueError: no prompts, an empty prompt, an invalid JSONL line, a prompt that is too long or not in the
            vocabulary, text without tokenizer, a chat that the template rejects; names file and line, or the index.
        FileNotFoundError: no such file.
    """
    rows: list[list[int]] = []
    places: list[str] = []
    for place, prompt in _read(source):
        row = _tokenize(prompt, tokenizer, place)
        if not row:
            raise ValueError(f"{place}: expected a prompt of at least one token, received {prompt!r}")
        if max_tokens is not None and len(row) > max_tokens:
            raise ValueError(f"{place}: expected a prompt of at most {max_tokens} tokens, received {len(row)}")
        wrong = [token for token in row if not 0 <= token < vocab_size]
        if wrong:
            raise ValueError(f"{place}: token id {wrong[0]} is outside the vocabulary [0, {vocab_size})")
        rows.append(row)
        places.append(place)
    if not rows:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "prompts"
        raise ValueError(f"{name}: expected at least one prompt, received none")
    return Prompts(pad_rows(rows), np.array([len(row) for row in rows], dtype=np.int64), tuple(places))


def _read(source: PromptSource) -> Iterator[tuple[str, Any]]:
    """Pairs of a place and a raw prompt."""
    if isinstance(source, Prompts):
        rows = zip(source.places, source.tokens, source.lengths, strict=True)
        yield from ((place, row[:length]) for place, row, length in rows)
        return
    if not isinstance(source, str | os.PathLike):
        yield from ((f"prompts[{index}]", prompt) for index, prompt in enumerate(source))
        return
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file {str(path)!r} (pass a single prompt as a list: [{str(path)!r}])")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path}: expected UTF-8 text, received {fault}") from fault
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _jsonl_prompt(line, place) if path.suffix == ".jsonl" else line.rstrip("\r")


def _jsonl_prompt(line: str, place: str) -> Any:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as fault:
        raise ValueError(f"{place}: expected a JSON object, received {line[:80]!r} ({fault})") from fault
    if not isinstance(record, dict) or not ("prompt" in record or "messages" in record):
        raise ValueError(f'{place}: expected an object with a field "prompt" or "messages", received {line[:80]!r}')
    return record["prompt"] if "prompt" in record else record["messages"]


def _tokenize(prompt: Any, tokenizer: Tokenizer | None, place: str) -> list[int]:
    if isinstance(prompt, str) or is_chat(prompt):
        if tokenizer is None:
            raise ValueError(
                f"{place}: expected a tokenizer, or token ids; received the text {prompt!r} and no tokenizer"
            )
        try:
            return _encode(prompt, tokenizer)
        except ValueError as fault:
            raise ValueError(f"{place}: {fault}") from fault
    tokens = np.asarray(prompt) if isinstance(prompt, Sequence | np.ndarray) else None
    if tokens is None or tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
        raise ValueError(f"{place}: expected a string, a list of token ids or of turns, received {prompt!r}")
    return [int(token) for token in tokens]


def _encode(prompt: Any, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str):
        return [int(token) for token in tokenizer(prompt)["input_ids"]]
    turns = question_of(check_turns(list(prompt)))
    if hasattr(tokenizer, "apply_chat_template"):
        return chat_ids(tokenizer, chat_text(tokenizer, turns, answering=True))
    return [int(token) for token in tokenizer(turns)["input_ids"]]


class PromptSampler:
    """Draws prompt indices without replacement: every prompt once an epoch.

    Without ``shuffle`` each epoch is 0 to ``num_prompts - 1`` in order. Each index is drawn ``repeats`` times in a row,
    so that the texts of one prompt can be compared.
    """

    def __init__(self, num_prompts: int, *, shuffle: bool, repeats: int = 1) -> None:
        self._num_prompts, self._shuffle, self._repeats = num_prompts, shuffle, repeats
        self.restart()

    def restart(self) -> None:
        """Start a new epoch with the next draw."""
        self._order = np.zeros(0, dtype=np.int64)
        self._position = 0

    def draw(self, count: int, generator: np.random.Generator) -> Ids:
        """The next `count` indices ``[count]``, across epochs where needed; `generator` shuffles new epochs."""
        drawn = np.empty(count, dtype=np.int64)
        for place in range(count):
            if self._position == len(self._order):
                everything = np.arange(self._num_prompts)
                order = generator.permutation(everything) if self._shuffle else everything
                self._order, self._position = order.repeat(self._repeats), 0
            drawn[place] = self._order[self._position]
            self._position += 1
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch, of JSON types; without the generator's state."""
        return {"order": self._order.tolist(), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; raise ValueError for another number of prompts, or other repeats."""
        order = np.array(state["order"], dtype=np.int64)
        if len(order) not in (0, self._num_prompts * self._repeats):
            raise ValueError(
                f"sampler state: expected {self._num_prompts} prompts, each {self._repeats} times in a row, received "
                f"{len(order)} indices"
            )
        self._order, self._position = order, int(state["position"])
