"""Preference pairs and their JSONL form: an object a line with ``prompt``, ``chosen``, ``rejected``, maybe ``margin``.

Each of the three is a text or a chat, a list of turns with role and content. Reward models and scorers read a chat as
plain text, a line a turn, without a template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from textenvs.tokens.chats import check_turns, is_chat, plain_prompt, question_and_answer, question_of

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """A preference between two completions of one prompt."""

    prompt: str
    """May be empty."""
    chosen: str
    rejected: str
    margin: float = 0.0
    """Required lead of the chosen completion, reward units, >= 0."""

    def __post_init__(self) -> None:
        for name in ("prompt", "chosen", "rejected"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name!r}: expected a string, received {getattr(self, name)!r}")
        is_number = isinstance(self.margin, (int, float)) and not isinstance(self.margin, bool)
        if not is_number or not math.isfinite(self.margin) or self.margin < 0:
            raise ValueError(f"'margin': expected a finite number >= 0, received {self.margin!r}")
        if self.chosen == self.rejected:
            raise ValueError("'chosen' and 'rejected': expected different texts, received the same")


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """The pairs of a JSONL file in their order; blank lines are skipped, further keys ignored.

    With a chat as ``prompt``, answers are texts or the assistant's turn alone. Where ``chosen`` and ``rejected`` are
    whole chats, their common beginning is the prompt, and ``prompt`` may be missing.

    Raises:
        ValueError: a line is no pair (the message names file and line), or the file cannot be read or has no pair.
    """
    return read_jsonl(path, lambda content, place: _pair_of(content), row="a preference pair")


def read_jsonl(path: str | Path, convert: Callable[[dict[str, Any], str], T], *, row: str) -> list[T]:
    """What ``convert`` makes of the object on each line and of its place ("my.jsonl:3"); blank lines are skipped.

    Raises:
        ValueError: a line is no object or ``convert`` refuses it (the message says that ``row`` was expected, and names
            file and line), or the file cannot be read or has no row.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as fault:
        raise ValueError(f"{path}: expected a readable text file ({fault})") from fault
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                rows.append(convert(_object(line), place))
            except ValueError as fault:
                raise ValueError(f"{place}: expected {row}: {fault}") from fault
    if not rows:
        raise ValueError(f"{path}: expected at least one line with {row}, received none")
    return rows


def _object(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as fault:
        raise ValueError(f"expected JSON, received {line[:80]!r} ({fault})") from fault
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, received {line[:80]!r}")
    return content


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as JSONL, one object a line."""
    lines = [json.dumps(asdict(pair), ensure_ascii=False) for pair in pairs]
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _pair_of(content: dict[str, Any]) -> PreferencePair:
    content = _plain(content)
    missing = [name for name in ("prompt", "chosen", "rejected") if name not in content]
    if missing:
        raise ValueError(
            f"missing {', '.join(map(repr, missing))}; an object has prompt, chosen, rejected, maybe margin"
        )
    known = {name: content[name] for name in ("prompt", "chosen", "rejected", "margin") if name in content}
    if known.get("margin", 0.0) is None:
        del known["margin"]
    return PreferencePair(**known)


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with every chat as plain text."""
    plain = dict(content)
    if is_chat(plain.get("prompt")):
        plain["prompt"] = plain_prompt(question_of(check_turns(plain["prompt"], "'prompt'")))
    questions = {}
    for name in ("chosen", "rejected"):
        if is_chat(plain.get(name)):
            turns, plain[name] = question_and_answer(plain[name], f"{name!r}")
            questions[name] = plain_prompt(turns) if turns else None
    if len(set(questions.values())) > 1:
        raise ValueError("'chosen' and 'rejected': expected answers to the same turns, received different ones")
    question = next(iter(questions.values()), None)
    return plain | ({} if question is None else {"prompt": question})
