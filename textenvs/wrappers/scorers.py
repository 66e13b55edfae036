"""Calling scorers on token ids, or on text by the names of their parameters."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from textenvs.tokens.end_tokens import EndOfText, is_end
from textenvs.tokens.rows import PAD, Floats, Ids, as_numbers
from textenvs.tokens.tokenizers import Tokenizer, decode_rows, same_tokenizer
from textenvs.wrappers.interfaces import Scorer

TEXTS = ("prompts", "completions")
GIVEN = (*TEXTS, "finished", "completion_ids")
"""What scorers of text may ask for, each a list with an entry a text; ids are without padding."""


@dataclass(frozen=True)
class _Member:
    """One scorer and how it is called."""

    place: str
    """Its name in messages: place in the list and name."""
    scorer: Any
    listed: int
    """Index in the caller's list of the scorer itself, or of its ensemble."""
    reads_tokens: bool
    """Token ids (True) or text (False)."""


class Scorers:
    """The scorers of one environment; ensembles are expanded into their members.

    ``names`` are one for each scorer listed. None: the scorers' own, numbered where two are the same. ``columns`` are
    those of the prompts' rows, which scorers may ask for.

    Raises:
        ValueError: no scorer, one that cannot be called, or names of another number or not different.
    """

    def __init__(
        self,
        scorer: Scorer | Sequence[Scorer],
        *,
        tokenizer: Tokenizer | None,
        eos_token_id: EndOfText,
        names: Sequence[str] | None = None,
        columns: Iterable[str] = (),
    ) -> None:
        several = isinstance(scorer, Sequence)
        listed: list[Any] = list(scorer) if isinstance(scorer, Sequence) else [scorer]
        if not listed:
            raise ValueError("scorer: expected at least one scorer, received an empty list")
        if names is None:
            own = [_name(one) for one in listed]
            names = [f"{name}_{index}" if own.count(name) > 1 else name for index, name in enumerate(own)]
        if len(names) != len(listed) or len(set(names)) != len(names):
            raise ValueError(f"names: expected {len(listed)} different ones, received {list(names)}")
        self._tokenizer, self._eos_token_id, self._columns = tokenizer, eos_token_id, tuple(columns)
        self.num_listed = len(listed)
        """Number of listed scorers; an ensemble counts once."""
        self._members: list[_Member] = []
        found: list[str] = []
        for index, (name, one) in enumerate(zip(names, listed, strict=True)):
            place = f"scorer[{index}] ({_name(one)})" if several else f"scorer {_name(one)}"
            members = getattr(one, "members", None)
            if isinstance(members, Sequence) and not isinstance(members, str) and members:
                self._members += [self._member(f"{place}.members[{i}]", m, index) for i, m in enumerate(members)]
                found += [f"{name}/{i}" for i in range(len(members))]
            else:
                self._members.append(self._member(place, one, index))
                found.append(name)
        self.names = tuple(found)
        """The members' names; "name/0", "name/1" and so on for an ensemble "name"."""

    def member_weights(self, weights: Sequence[float]) -> list[float]:
        """Weights of the members from those of the listed scorers; an ensemble's is split evenly."""
        sizes = np.bincount([member.listed for member in self._members])
        return [float(weights[member.listed] / sizes[member.listed]) for member in self._members]

    def __call__(self, prompts: Ids, completions: Ids, columns: Sequence[Mapping[str, Any]] = ()) -> Floats:
        """Scores ``[K, N]`` of the K members, of rows ``[N, P]`` and ``[N, T]`` padded with PAD, and N ``columns``.

        Raises:
            ValueError: a member returned NaN, an infinity or another shape; the message names it.
            RuntimeError: a member raised; the message has the error and its place.
        """
        found = dict.fromkeys(name for row in columns for name in row)
        given: dict[str, list[Any]] = {name: [row.get(name) for row in columns] for name in found}
        if not all(member.reads_tokens for member in self._members):
            assert self._tokenizer is not None
            given |= zip(TEXTS, decode_rows(self._tokenizer, prompts, completions), strict=True)
            given["finished"] = list(is_end(completions, self._eos_token_id).any(axis=1).tolist())  # type: ignore[arg-type]
            given["completion_ids"] = [row[row != PAD].tolist() for row in completions]
        scores = []
        for member in self._members:
            # Each gets copies: a scorer that changes its arguments does not affect the next one.
            texts, named = ([], {}) if member.reads_tokens else arguments_of(member.scorer, given, member.place)
            try:
                if member.reads_tokens:
                    values = member.scorer.score_tokens(prompts.copy(), completions.copy())
                else:
                    values = member.scorer(*texts, **named)
            except Exception as fault:
                last = traceback.extract_tb(fault.__traceback__)[-1]
                where = f"{type(fault).__name__}: {fault} ({last.filename}:{last.lineno})"
                raise RuntimeError(f"{member.place} failed on {len(completions)} texts: {where}") from fault
            scores.append(as_numbers(values, (len(completions),), member.place))
        return np.stack(scores)

    def _member(self, place: str, scorer: Any, listed: int) -> _Member:
        return _Member(place, scorer, listed, self._wants_tokens(place, scorer))

    def _wants_tokens(self, place: str, scorer: Any) -> bool:
        """Whether `scorer` gets token ids (True) or text (False); raise ValueError if it can get neither."""
        own, theirs = self._tokenizer, getattr(scorer, "tokenizer", None)
        if hasattr(scorer, "score_tokens") and (theirs is None or (own is not None and same_tokenizer(theirs, own))):
            return True
        if not callable(scorer):
            what = "its tokenizer is not the environment's, and it" if hasattr(scorer, "score_tokens") else "it"
            raise ValueError(f"{place}: {what} cannot be called on text; received {scorer!r:.200}")
        if own is None:
            raise ValueError(f"{place}: expected a tokenizer in the environment for a scorer of text, received none")
        arguments_of(scorer, {name: [] for name in (*GIVEN, *self._columns)}, place)
        return False


def arguments_of(
    scorer: Callable[..., object], given: Mapping[str, list[Any]], place: str
) -> tuple[list[list[Any]], dict[str, list[Any]]]:
    """Copies of what ``scorer`` asks for of ``given``: positional arguments, and those by name.

    Parameters are named as in TRL. Prompts and completions are positional where a signature has no names for them.

    Raises:
        ValueError: a parameter has another name and no default, or none is for a text.
    """
    try:
        signature = inspect.signature(scorer)
    except (TypeError, ValueError):  # some callables that are not written in Python
        return [list(given[name]) for name in TEXTS], {}
    parameters = signature.parameters.values()
    places = [one for one in parameters if one.kind is one.POSITIONAL_ONLY]
    names = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    kinds = {one.kind for one in parameters}
    by_place = bool(places) or kinds == {inspect.Parameter.VAR_POSITIONAL}
    texts = [list(given[name]) for name in TEXTS] if by_place else []
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds
    named = {name: list(values) for name, values in given.items() if name in names or takes_all}
    required = {name for name in names if signature.parameters[name].default is inspect.Parameter.empty}
    if required - given.keys() or len(places) not in (0, 2) or not (texts or named):
        raise ValueError(
            f"{place}: expected parameters with names of {', '.join(given)} (columns of the prompts among them), as in "
            f"f(prompts, completions), received {signature}"
        )
    return texts, named


def _name(scorer: Any) -> str:
    return str(getattr(scorer, "__name__", None) or type(scorer).__name__)
