"""Preference pairs: rows with ``prompt``, ``chosen``, ``rejected``, maybe ``margin``; written as JSONL.

Each of the three is a text or a chat, a list of turns with role and content. Reward models and scorers read a chat as
plain text, a line a turn, without a template.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textenvs.tokens.chats import as_turns, check_turns, is_chat, plain_prompt, plain_text, question_of
from textenvs.tokens.row_files import Source, at, check_unicode, read_rows

ANSWERS = ("chosen", "rejected")
FIELDS = ("prompt", *ANSWERS, "margin")
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"))
"""Columns with scores of the two; they only say whether the row is a tie."""
ANSWER_BEGINS = "\n\nAssistant:"
"""In conversations written as one text, as those of Anthropic's hh-rlhf."""


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

    With a chat as ``prompt``, answers are texts or chats of the assistant alone. Where ``chosen`` and ``rejected`` are
    whole conversations, as chats or as texts, they begin with the prompt, and ``prompt`` may be missing. Rows that
    prefer nothing are left out with a warning: equal texts, or a chosen one whose score (`SCORES`) is not the higher.

    Raises:
        ValueError: a row is no pair (the message names file and line), or all are ties.
        FileNotFoundError, ImportError: as `textenvs.tokens.row_files.iterate_rows`.
    """
    pairs, rows = [], read_rows(source)
    for row in rows:
        with at(f"{row.place}: expected a preference pair"):
            content = _plain(row.columns)
            if content["chosen"] != content["rejected"] and _chosen_is_higher(content):
                pairs.append(PreferencePair(**{name: content[name] for name in FIELDS if name in content}))
    if len(pairs) < len(rows):
        ties = f"{source}: {len(rows) - len(pairs)} of {len(rows)} rows are ties (equal texts or scores)"
        if not pairs:
            raise ValueError(f"{ties}: expected rows that prefer one text")
        warnings.warn(f"{ties} and are left out", stacklevel=2)
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as JSONL, one object a line."""
    lines = [json.dumps(asdict(pair), ensure_ascii=False) for pair in pairs]
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _chosen_is_higher(content: dict[str, Any]) -> bool:
    scores = next((pair for pair in SCORES if all(name in content for name in pair)), None)
    return scores is None or bool(float(content[scores[0]]) > float(content[scores[1]]))


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with every chat as plain text; as in all stages, ``messages`` come before ``prompt``."""
    name = "messages" if "messages" in content else "prompt"
    plain = content | ({"prompt": content[name]} if name in content else {})
    if is_chat(plain.get("prompt")):
        plain["prompt"] = plain_prompt(question_of(check_turns(plain["prompt"], f"{name!r}")))
    if all(name in content for name in ANSWERS):
        plain |= _of_conversations([plain[name] for name in ANSWERS], has_prompt="prompt" in plain)
    if isinstance(plain.get("margin"), str):  # as all cells of a CSV file are
        with suppress(ValueError):
            plain["margin"] = float(plain["margin"])
    missing = [name for name in FIELDS[:3] if name not in plain]
    if missing:
        raise ValueError(f"missing {', '.join(map(repr, missing))}; a pair has prompt, chosen, rejected, maybe margin")
    return plain


def _of_conversations(both: Sequence[Any], *, has_prompt: bool) -> dict[str, str]:
    """The prompt that two conversations begin with, and how each goes on; answers alone have no prompt."""
    chats = [as_turns(value, f"{name!r}") for name, value in zip(ANSWERS, both, strict=True) if is_chat(value)]
    for turns in chats:
        if turns[-1]["role"] != "assistant":
            raise ValueError(f"'chosen', 'rejected': expected a last turn of the assistant, received {turns[-1]!r}")
    if len(chats) == 1:
        raise ValueError("'chosen', 'rejected': expected two texts or two chats, received one of each")
    if chats:
        same = min(_num_shared(*chats), *(len(turns) - 1 for turns in chats))
        if not same and max(map(len, chats)) > 1:
            raise ValueError("'chosen', 'rejected': expected answers to the same turns, received different ones")
        found = {name: plain_text(turns[same:]) for name, turns in zip(ANSWERS, chats, strict=True)}
        return found | ({"prompt": plain_prompt(chats[0][:same])} if same else {})
    if has_prompt or not all(isinstance(text, str) for text in both):
        return {}
    shared = both[0][: _num_shared(*both)]
    answer = shared.rfind(ANSWER_BEGINS)
    end = shared.rfind("\n") + 1 if answer < 0 else answer + len(ANSWER_BEGINS)
    return {"prompt": shared[:end], **{name: text[end:] for name, text in zip(ANSWERS, both, strict=True)}}


def _num_shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    differ = (index for index, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(differ, min(len(first), len(second)))
