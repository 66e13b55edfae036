"""Rows for supervised fine-tuning, read from JSONL and checked; tokens are `agents.recipes.sft.rows`' business.

A file holds one kind of rows, which its first one tells: `prompt` and `completion`, or `text`, or `messages`. Further
fields are ignored. Every fault is named by file and line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reward_models.data.pairs import read_jsonl
from textenvs.tokens.chats import check_turns

Kind = Literal["completions", "texts", "chats"]
FIELDS: dict[Kind, tuple[str, ...]] = {
    "completions": ("prompt", "completion"),
    "texts": ("text",),
    "chats": ("messages",),
}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row: ``content`` has the fields of its kind, checked."""

    place: str
    """"my.jsonl:3"."""
    content: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The rows of a file in their order."""

    kind: Kind
    rows: list[Example]


def read_examples(path: str | Path, kind: Kind | None = None) -> Examples:
    """Read and check a file; blank lines are skipped.

    Args:
        path: of the JSONL file.
        kind: that it has to be of; None: its first row tells.

    Raises:
        ValueError: if the file cannot be read or holds no row; if a line is not JSON, not of the file's kind, or has
            nothing to learn. The message names the line.
    """

    def example(fields: dict[str, Any], place: str) -> Example:
        nonlocal kind
        kind = _kind_of(fields) if kind is None else kind
        return Example(place=place, content=_CHECKS[kind](_needed(fields, kind)))

    rows = read_jsonl(path, example, row="a row to learn from")
    assert kind is not None  # the first row told it
    return Examples(kind=kind, rows=rows)


def _kind_of(fields: dict[str, Any]) -> Kind:
    found = [kind for kind, names in FIELDS.items() if all(name in fields for name in names)]
    if len(found) == 1:
        return found[0]
    wanted = "prompt and completion, or text, or messages"
    if found:
        raise ValueError(f"a row has {wanted}; this one has {', '.join(fields)}: keep the fields of one kind")
    raise ValueError(f"a row has {wanted}; received {', '.join(fields) or 'no field at all'}")


def _needed(fields: dict[str, Any], kind: Kind) -> dict[str, Any]:
    missing = [name for name in FIELDS[kind] if name not in fields]
    if missing:
        raise ValueError(
            f"missing {' and '.join(map(repr, missing))}: the rows of this file have {' and '.join(FIELDS[kind])}"
        )
    return {name: fields[name] for name in FIELDS[kind]}


def _completion(fields: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(fields["prompt"], str):
        raise ValueError(f"'prompt' must be a string, received {fields['prompt']!r}")
    return fields | {"completion": _words(fields["completion"], "'completion'")}


def _text(fields: dict[str, Any]) -> dict[str, Any]:
    return {"text": _words(fields["text"], "'text'")}


def _chat(fields: dict[str, Any]) -> dict[str, Any]:
    turns = check_turns(fields["messages"])
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
