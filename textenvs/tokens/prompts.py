"""Prompts from lists, files and data sets, validated when read, and the order they are drawn in."""

from __future__ import annotations

import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from textenvs.tokens.chats import Turn, chat_ids, chat_text, check_turns, is_chat, question_of
from textenvs.tokens.row_files import COLUMNS, Kind, Row, Source, as_row, at, check_unicode, iterate_rows, kind_of
from textenvs.tokens.rows import Ids, Mask, pad_rows
from textenvs.tokens.tokenizers import Tokenizer, open_ids

Prompt: TypeAlias = "str | Sequence[int] | Sequence[Turn]"
RowSource: TypeAlias = "Source | Iterable[Prompt | Mapping[str, Any]]"
PromptSource: TypeAlias = "RowSource | Prompts"


class RowColumns(dict[str, Any]):
    """What a row has beside its prompt, by name."""

    __slots__ = ("place",)
    place: str
    """Of the row, for messages."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """M tokenized prompts, with the rows that they were read from."""

    flat: NDArray[np.int32]
    """All tokens, a prompt behind the other: one long prompt costs no more than its own tokens."""
    lengths: Ids
    """``[M]`` tokens."""
    places: tuple[str, ...]
    """M names for messages: "prompts.txt:3", or "rows[2]" for a list."""
    columns: tuple[RowColumns, ...]
    """M rows without the column that is the prompt: what rewards may be given beside the text."""
    kind: Kind = "prompts"
    """Of the first row: "prompts", or "chats" if it was read from ``messages``."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, part: slice | Sequence[int]) -> Prompts:
        """Some of the prompts, by a slice or by their numbers."""
        numbers = list(range(len(self))[part] if isinstance(part, slice) else part)
        return replace(
            self,
            flat=np.concatenate([self.row(number) for number in numbers]),
            lengths=self.lengths[numbers],
            places=tuple(self.places[number] for number in numbers),
            columns=tuple(self.columns[number] for number in numbers),
        )

    @cached_property
    def _ends(self) -> Ids:
        return np.cumsum(self.lengths)

    @property
    def width(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.lengths.max())

    def row(self, number: int) -> NDArray[np.int32]:
        """The tokens of one prompt."""
        return self.flat[self._ends[number] - self.lengths[number] : self._ends[number]]

    def cut(self, most: int) -> Prompts:
        """The last ``most`` tokens of each prompt."""
        rows = [self.row(number)[-most:] for number in range(len(self))]
        return replace(self, flat=np.concatenate(rows), lengths=np.minimum(self.lengths, most))

    @property
    def identities(self) -> list[bytes]:
        """M times what tells prompts apart: their tokens."""
        return [self.row(number).tobytes() for number in range(len(self))]

    def padded(self, numbers: Ids) -> Ids:
        """``[K, width]`` the prompts of these ``numbers``, right-padded with PAD."""
        return pad_rows([self.row(number) for number in numbers], self.width)

    @property
    def tokens(self) -> Ids:
        """``[M, width]`` all prompts, right-padded with PAD, made anew each time: for few of them."""
        return self.padded(np.arange(len(self)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all columns, as the rows have them first."""
        return tuple(dict.fromkeys(name for row in self.columns for name in row))

    def info(self, numbers: Ids, mask: Mask | None = None) -> dict[str, NDArray[Any]]:
        """Gymnasium's masked entries ``[N]`` of the columns of rows ``numbers [N]``, where ``mask``; None: everywhere.

        Names that begin with an underscore, as those of masks do, are left out.
        """
        found: dict[str, NDArray[Any]] = {}
        for name in (name for name in self.names if not name.startswith("_")):
            values, has = np.full(len(numbers), None, dtype=object), np.zeros(len(numbers), dtype=np.bool_)
            for index, number in enumerate(numbers):
                if (mask is None or mask[index]) and name in self.columns[number]:
                    values[index], has[index] = self.columns[number][name], True
            found |= {name: values, f"_{name}": has}
        return found

    @cached_property
    def fingerprint(self) -> int:
        """A checksum of tokens and columns, compared when a saved state is loaded."""
        columns = json.dumps(self.columns, default=lambda value: type(value).__name__, skipkeys=True)
        tokens = zlib.crc32(self.lengths.tobytes(), zlib.crc32(self.flat.tobytes()))
        return zlib.crc32(columns.encode(), tokens) if self.names else tokens


def load_prompts(
    source: PromptSource, tokenizer: Tokenizer | None = None, *, vocab_size: int, max_tokens: int | None = None
) -> Prompts:
    """Read, tokenize and check prompts.

    Args:
        source: a file or data set (see `textenvs.tokens.row_files`; of a ``.txt`` file each line is a prompt), an
            iterable of prompts or of rows (a list, a ``datasets.Dataset``), or `Prompts`. A row is an object; its chat
            in ``messages`` counts, or else its ``prompt``. A prompt is a string, a list of token ids, or a chat: a list
            of turns, objects with role and content; an answer of the assistant at its end is dropped. A ``str`` is a
            path; pass a single prompt as a list.
        tokenizer: of strings, and of chats through its chat template; without ``apply_chat_template`` it is called with
            the turns. None if all prompts are token ids.
        vocab_size, max_tokens: limits of token ids and of a prompt's tokens; None allows any number.

    Raises:
        ValueError: no prompts, an empty prompt, a row that cannot be read, a prompt that is too long or not in the
            vocabulary, text without tokenizer, a chat that the template rejects; names file and line, or the index.
        FileNotFoundError, ImportError: as `textenvs.tokens.row_files.iterate_rows`.
    """
    if isinstance(source, Prompts):
        _check(source, vocab_size, max_tokens)
        return source
    flat, lengths, places, columns = array("i"), [], [], []
    kind: Kind | None = None
    for row in rows_of(source):
        with at(row.place):
            own = kind_of(row.columns, ("chats", "prompts"))
            tokens = _tokenize(row.columns[COLUMNS[own][0]], tokenizer)
            flat.extend(tokens)
        lengths.append(len(tokens))
        places.append(row.place)
        columns.append(RowColumns({name: row.columns[name] for name in row.columns if name not in COLUMNS[own]}))
        columns[-1].place = row.place
        kind = kind or own
    if kind is None:
        raise ValueError("rows: expected at least one row, received none")
    ids = np.frombuffer(flat, dtype=np.int32) if flat else np.zeros(0, dtype=np.int32)
    prompts = Prompts(ids, np.array(lengths, dtype=np.int64), tuple(places), tuple(columns), kind)
    _check(prompts, vocab_size, max_tokens)
    return prompts


def rows_of(source: Source | Iterable[Any]) -> Iterator[Row]:
    """The rows of a source as in `load_prompts`, untokenized; a bare prompt is the column ``prompt``. Errors alike."""
    if isinstance(source, str | os.PathLike):
        try:
            yield from iterate_rows(source, bare="prompt")
        except FileNotFoundError as fault:
            raise FileNotFoundError(f"{fault} (pass a single prompt as a list: [{str(source)!r}])") from fault
        return
    if isinstance(source, Mapping) or hasattr(source, "iloc"):
        hint = "pass one of its splits" if isinstance(source, Mapping) else "pass its to_dict('records')"
        raise ValueError(f"rows: expected a list of rows or one data set, received a {type(source).__name__}: {hint}")
    for index, prompt in enumerate(source):
        place = f"rows[{index}]"
        if isinstance(prompt, Row):
            yield prompt
        else:
            yield as_row(prompt, place) if isinstance(prompt, Mapping) else Row({"prompt": prompt}, place)


def _check(prompts: Prompts, vocab_size: int, max_tokens: int | None) -> None:
    """Raise ValueError, with its place, for a prompt that is empty, too long or outside the vocabulary."""
    for number in np.flatnonzero((prompts.lengths == 0) | (prompts.lengths > (max_tokens or np.inf))):
        wanted = "least one token" if prompts.lengths[number] == 0 else f"most {max_tokens} tokens"
        received = prompts.lengths[number]
        raise ValueError(f"{prompts.places[number]}: expected a prompt of at {wanted}, received {received}")
    for wrong in np.flatnonzero((prompts.flat < 0) | (prompts.flat >= vocab_size)):
        place = prompts.places[np.searchsorted(prompts._ends, wrong, side="right")]
        raise ValueError(f"{place}: token id {prompts.flat[wrong]} is outside the vocabulary [0, {vocab_size})")


def _tokenize(prompt: Any, tokenizer: Any) -> Sequence[int]:
    is_text = isinstance(prompt, str)
    if is_text or is_chat(prompt):
        if tokenizer is None:
            raise ValueError(f"expected a tokenizer, or token ids; received the text {prompt!r} and no tokenizer")
        check_unicode(prompt, "prompt")
        if is_text:
            return open_ids(tokenizer, prompt)
        turns = question_of(check_turns(list(prompt)))
        if hasattr(tokenizer, "apply_chat_template"):
            return chat_ids(tokenizer, chat_text(tokenizer, turns, answering=True))
        return tokenizer(turns)["input_ids"]
    tokens = np.asarray(prompt) if isinstance(prompt, Sequence | np.ndarray) else None
    if tokens is None or tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
        raise ValueError(f"expected a string, a list of token ids or of turns, received {prompt!r}")
    return tokens.tolist()


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
