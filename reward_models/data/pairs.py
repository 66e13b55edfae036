"""Preference pairs and their JSONL form: an object a line: ``prompt``, ``chosen``, ``rejected``, maybe ``margin``.

Each of the three is a text or a chat, a list of turns with role and content. A reward model reads a chat as it is said,
a line a turn, whatever its own tokenizer's template; so do the scorers of `scripts.train_text`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textenvs.tokens.chats import check_turns, is_chat, plain_prompt, question_and_answer, question_of


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Of two completions of one prompt, which was preferred.

    Attributes:
        prompt: what both begin with; may be empty.
        chosen: the preferred completion.
        rejected: the other one.
        margin: by how much the chosen one's reward should lead, in reward units, >= 0.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prompt", "chosen", "rejected"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name!r} must be a string, got {getattr(self, name)!r}")
        is_number = isinstance(self.margin, (int, float)) and not isinstance(self.margin, bool)
        if not is_number or not math.isfinite(self.margin) or self.margin < 0:
            raise ValueError(f"'margin' must be a finite number >= 0, got {self.margin!r}")
        if self.chosen == self.rejected:
            raise ValueError("'chosen' and 'rejected' are the same text")


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """The pairs of a JSONL file in their order; blank lines are skipped, further keys ignored.

    A ``prompt`` that is a chat goes with answers that are texts or the assistant's turn alone. Where ``chosen`` and
    ``rejected`` are whole chats, what they begin with is the prompt, and ``prompt`` may be left out.

    Raises:
        ValueError: naming file and line, if a line is not a pair; or if the file cannot be read or holds no pair.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable text file ({error})") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                pairs.append(_pair_of(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not a preference pair: {error}") from error
    if not pairs:
        raise ValueError(f"{path}: no preference pair in it")
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as JSONL, one object a line."""
    lines = [json.dumps(asdict(pair), ensure_ascii=False) for pair in pairs]
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _pair_of(line: str) -> PreferencePair:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {type(content).__name__}")
    content = _said(content)
    missing = [name for name in ("prompt", "chosen", "rejected") if name not in content]
    if missing:
        raise ValueError(
            f"missing {', '.join(map(repr, missing))}; an object has prompt, chosen, rejected, maybe margin"
        )
    known = {name: content[name] for name in ("prompt", "chosen", "rejected", "margin") if name in content}
    if known.get("margin", 0.0) is None:
        del known["margin"]
    return PreferencePair(**known)


def _said(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with every chat in it as the text that is said."""
    said = dict(content)
    if is_chat(said.get("prompt")):
        said["prompt"] = plain_prompt(question_of(check_turns(said["prompt"], "'prompt'")))
    questions = {}
    for name in ("chosen", "rejected"):
        if is_chat(said.get(name)):
            turns, said[name] = question_and_answer(said[name], f"{name!r}")
            questions[name] = plain_prompt(turns) if turns else None
    if len(set(questions.values())) > 1:
        raise ValueError("'chosen' and 'rejected' answer to different turns")
    question = next(iter(questions.values()), None)
    return said | ({} if question is None else {"prompt": question})
