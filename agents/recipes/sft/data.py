"""Rows for supervised fine-tuning, read and checked; tokens are `agents.recipes.sft.rows`' business.

A file holds one kind of rows, which its first one tells (see `textenvs.tokens.row_files.COLUMNS`): chats in
``messages``, a ``prompt`` and its ``completion`` (texts, or parts of a chat), or ``text``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textenvs.tokens.chats import Turn, check_turns, is_chat
from textenvs.tokens.row_files import Kind, Row, Source, at, kind_of, read_rows


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The rows of a file in their order."""

    kind: Kind
    rows: list[Row]
    """Their columns are those of the kind alone, checked; a prompt that is a chat became ``messages``."""


def read_examples(source: Source, kind: Kind | None = None) -> Examples:
    """Read and check rows to learn from, all of ``kind``; None: of the first one's.

    Raises:
        ValueError: a row is not of the kind or has nothing to learn; the message names file and line.
        FileNotFoundError, ImportError: as `textenvs.tokens.row_files.iterate_rows`.
    """
    rows = []
    for row in read_rows(source):
        with at(f"{row.place}: expected a row to learn from"):
            kind = kind_of(row.columns, ("chats", "completions", "texts") if kind is None else (kind,))
            rows.append(Row(_CHECKS[kind](row.columns), row.place))
    assert kind is not None  # there is a row
    return Examples(kind=kind, rows=rows)


def _completion(columns: Mapping[str, Any]) -> dict[str, Any]:
    prompt, completion = columns["prompt"], columns["completion"]
    if is_chat(prompt):
        answer = completion if is_chat(completion) else [{"role": "assistant", "content": completion}]
        return _chat({"messages": [*prompt, *answer]})
    if not isinstance(prompt, str):
        raise ValueError(f"'prompt' must be a string or a chat, received {prompt!r}")
    return {"prompt": prompt, "completion": _words(completion, "'completion'")}


def _text(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": _words(columns["text"], "'text'")}


def _chat(columns: Mapping[str, Any]) -> dict[str, list[Turn]]:
    turns = check_turns(columns["messages"])
    if all(turn["role"] != "assistant" for turn in turns):
        raise ValueError("no turn is the assistant's: there is nothing to learn")
    return {"messages": turns}


def _words(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, received {value!r}")
    if not value.strip():
        raise ValueError(f"{name} is empty: there is nothing to learn")
    return value


_CHECKS = {"completions": _completion, "texts": _text, "chats": _chat}
