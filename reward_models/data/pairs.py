"""Preference pairs: rows with ``prompt``, ``chosen``, ``rejected``, maybe ``margin``; written as JSONL.

Each of the three is a text or a chat, a list of turns with role and content. Reward models and scorers read a chat as
plain text, a line a turn, without a template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textenvs.tokens.chats import check_turns, is_chat, plain_prompt, question_and_answer, question_of
from textenvs.tokens.row_files import Source, at, check_unicode, read_rows


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
            check_unicode(getattr(self, name), repr(name))
        is_number = isinstance(self.margin, (int, float)) and not isinstance(self.margin, bool)
        if not is_number or not math.isfinite(self.margin) or self.margin < 0:
            raise ValueError(f"'margin': expected a finite number >= 0, received {self.margin!r}")
        if self.chosen == self.rejected:
            raise ValueError("'chosen' and 'rejected': expected different texts, received the same")


def read_pairs(source: Source) -> list[PreferencePair]:
    """The pairs of a file or data set (see `textenvs.tokens.row_files`) in their order; further columns are ignored.

    With a chat as ``prompt``, answers are texts or the assistant's turn alone. Where ``chosen`` and ``rejected`` are
    whole chats, their common beginning is the prompt, and ``prompt`` may be missing.

    Raises:
        ValueError: a row is no pair; the message names file and line.
        FileNotFoundError, ImportError: as `textenvs.tokens.row_files.iterate_rows`.
    """
    pairs = []
    for row in read_rows(source):
        with at(f"{row.place}: expected a preference pair"):
            pairs.append(_pair_of(row.columns))
    return pairs


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
    return PreferencePair(
        **{name: content[name] for name in ("prompt", "chosen", "rejected", "margin") if name in content}
    )


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with every chat as plain text; as in all stages, ``messages`` come before ``prompt``."""
    name = "messages" if "messages" in content else "prompt"
    plain = content | ({"prompt": content[name]} if name in content else {})
    if is_chat(plain.get("prompt")):
        plain["prompt"] = plain_prompt(question_of(check_turns(plain["prompt"], f"{name!r}")))
    questions = {}
    for name in ("chosen", "rejected"):
        if is_chat(plain.get(name)):
            turns, plain[name] = question_and_answer(plain[name], f"{name!r}")
            questions[name] = plain_prompt(turns) if turns else None
    if len(set(questions.values())) > 1:
        raise ValueError("'chosen' and 'rejected': expected answers to the same turns, received different ones")
    question = next(iter(questions.values()), None)
    return plain | ({} if question is None else {"prompt": question})
