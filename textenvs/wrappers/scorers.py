"""Calling scorers on token ids, or on text by the names of their parameters; slow ones side by side."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from threading import Thread
from typing import Any

import numpy as np

from textenvs.tokens.end_tokens import EndOfText, is_end
from textenvs.tokens.rows import PAD, Floats, Ids, as_numbers
from textenvs.tokens.tokenizers import Tokenizer, decode_rows, same_tokenizer
from textenvs.wrappers.interfaces import Scorer

TEXTS = ("prompts", "completions")
GIVEN = (*TEXTS, "finished", "completion_ids")
"""What scorers of text may ask for, each a list with an entry a text; ids are without padding."""
MOST_THREADS = 64
"""Of calls that run side by side."""
SEARCH_SECONDS = 10.0
"""Longest search for the row on which a scorer raised, after which it is only narrowed down."""


class RewardError(ValueError, RuntimeError):
    """A scorer raised, or returned something else than a number or None for each text; names the scorer and the row."""


@dataclass(frozen=True)
class _Member:
    """One scorer and how it is called."""

    place: str  # its name in messages: place in the list and name
    scorer: Any
    listed: int  # index in the caller's list of the scorer itself, or of its ensemble
    reads_tokens: bool  # token ids (True) or text (False)


@dataclass(frozen=True)
class _Texts:
    """N texts as scorers get them."""

    prompts: Ids
    completions: Ids
    given: Mapping[str, list[Any]]
    rows: list[str]  # names of their rows, for messages

    def __getitem__(self, part: slice) -> _Texts:
        given = {name: values[part] for name, values in self.given.items()}
        return _Texts(self.prompts[part], self.completions[part], given, self.rows[part])


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

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """The members themselves."""
        return tuple(member.scorer for member in self._members)

    def member_weights(self, weights: Sequence[float]) -> list[float]:
        """Weights of the members from those of the listed scorers; an ensemble's is split evenly."""
        sizes = np.bincount([member.listed for member in self._members])
        return [float(weights[member.listed] / sizes[member.listed]) for member in self._members]

    def __call__(self, prompts: Ids, completions: Ids, columns: Sequence[Mapping[str, Any]] = ()) -> Floats:
        """Scores ``[K, N]`` of the K members, of rows ``[N, P]`` and ``[N, T]`` padded with PAD, and N ``columns``.

        NaN where a member returned None: it does not apply. Coroutines, and members with a true attribute ``threaded``,
        run side by side; the order of the scores is that of the members.

        Raises:
            RewardError: a member raised, or returned text, NaN, an infinity or another shape.
            ValueError: a member asks for a column that no row has.
        """
        found = dict.fromkeys(name for row in columns for name in row)
        given: dict[str, list[Any]] = {name: [row.get(name) for row in columns] for name in found}
        rows = [f"row {index}" for index in range(len(completions))]
        for index, row in enumerate(columns):
            rows[index] = getattr(row, "place", rows[index])
        if not all(member.reads_tokens for member in self._members):
            assert self._tokenizer is not None
            given |= zip(TEXTS, decode_rows(self._tokenizer, prompts, completions), strict=True)
            given["finished"] = list(is_end(completions, self._eos_token_id).any(axis=1).tolist())  # type: ignore[arg-type]
            given["completion_ids"] = [row[row != PAD].tolist() for row in completions]
        texts = _Texts(prompts, completions, given, rows)
        calls = [_begin(member, texts) for member in self._members]
        wait(calls)
        scores = []
        for member, call in zip(self._members, calls, strict=True):
            fault = call.exception()
            if fault is not None:
                raise _located(fault, member, texts) from fault
            scores.append(_as_scores(call.result(), member.place, rows))
        return np.stack(scores)

    def _member(self, place: str, scorer: Any, listed: int) -> _Member:
        """The scorer with token ids, else text, as what it gets; raise ValueError if it can get neither."""
        own, theirs = self._tokenizer, getattr(scorer, "tokenizer", None)
        if hasattr(scorer, "score_tokens") and (theirs is None or (own is not None and same_tokenizer(theirs, own))):
            return _Member(place, scorer, listed, reads_tokens=True)
        if not callable(scorer):
            what = "its tokenizer is not the environment's, and it" if hasattr(scorer, "score_tokens") else "it"
            raise ValueError(f"{place}: {what} cannot be called on text; received {scorer!r:.200}")
        if own is None:
            raise ValueError(f"{place}: expected a tokenizer in the environment for a scorer of text, received none")
        arguments_of(scorer, {name: [] for name in (*GIVEN, *self._columns)}, place)
        return _Member(place, scorer, listed, reads_tokens=False)


def _begin(member: _Member, texts: _Texts) -> Future[Any]:
    """Begin to score: in a thread, in the event loop beside others, or at once."""
    # Each gets copies: a scorer that changes its arguments does not affect the next one.
    if member.reads_tokens:
        arguments: list[Any] = [texts.prompts.copy(), texts.completions.copy()]
        scorer, named = member.scorer.score_tokens, dict[str, list[Any]]()
    else:
        scorer = member.scorer
        arguments, named = arguments_of(scorer, texts.given, member.place)
    if getattr(member.scorer, "threaded", False):
        return asyncio.run_coroutine_threadsafe(asyncio.to_thread(scorer, *arguments, **named), event_loop(os.getpid()))
    call: Future[Any] = Future()
    try:
        values = scorer(*arguments, **named)
        if inspect.iscoroutine(values):
            return asyncio.run_coroutine_threadsafe(values, event_loop(os.getpid()))
        call.set_result(values)
    except Exception as fault:
        call.set_exception(fault)
    return call


@cache
def event_loop(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of a process, in a thread of its own, so that clients keep their loop from call to call and a
    notebook's own is left alone."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="reward"))
    Thread(target=loop.run_forever, name=f"rewards of {process}", daemon=True).start()
    return loop


def _located(fault: BaseException, member: _Member, texts: _Texts) -> RewardError:
    """The error for what a member raised, with the row on which it raises by itself, if there is one."""
    first, last, limit = 0, len(texts.rows), time.monotonic() + SEARCH_SECONDS
    while last - first > 1 and time.monotonic() < limit:
        middle = (first + last) // 2
        halves = [slice(first, middle), slice(middle, last)]
        failing = next((half for half in halves if _begin(member, texts[half]).exception() is not None), None)
        if failing is None:
            break
        first, last = failing.start, failing.stop
    where = texts.rows[first]
    if last - first > 1:
        where = f"{last - first} texts, from {where} to {texts.rows[last - 1]}"
    elif not member.reads_tokens:
        where += f", completion {texts.given['completions'][first]!r:.80}"
    code = traceback.extract_tb(fault.__traceback__)[-1]
    message = f"{member.place} failed on {where}: {type(fault).__name__}: {fault} ({code.filename}:{code.lineno})"
    error = RewardError(message)
    # As add_note of Python 3.11: commands put it above the traceback.
    vars(error)["__notes__"] = [f"the reward's own code failed: {member.place}, on {where}"]
    return error


def _as_scores(values: Any, place: str, rows: Sequence[str]) -> Floats:
    """``[N]`` what a scorer returned; NaN for None.

    Raises:
        RewardError: another number of numbers, text, NaN or an infinity; names the row.
    """
    skipped = np.zeros(len(rows), dtype=np.bool_)
    if isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.ndim == 1):
        for row, value in zip(rows, values, strict=False):
            if isinstance(value, str):
                raise RewardError(f"{place}: expected a number or None, received the text {value!r:.80} at {row}")
        if len(values) < len(rows):
            none = rows[len(values)]
            raise RewardError(f"{place}: expected {len(rows)} numbers, received {len(values)}: none at {none}")
        if len(values) == len(rows):
            skipped = np.array([value is None for value in values])
            values = [0.0 if value is None else value for value in values] if skipped.any() else values
    try:
        scores = as_numbers(values, (len(rows),), place, rows)
    except ValueError as fault:
        raise RewardError(str(fault)) from fault.__cause__
    return np.where(skipped, np.float32(np.nan), scores)


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
    missing = ", ".join(repr(name) for name in signature.parameters if name in required - given.keys())
    if missing or len(places) not in (0, 2) or not (texts or named):
        raise ValueError(
            f"{place}: {f'no row has {missing}, which it asks for; ' if missing else ''}expected parameters with names "
            f"of {', '.join(given)} (the rows' columns among them), as in f(prompts, completions), received {signature}"
        )
    return texts, named


def _name(scorer: Any) -> str:
    return str(getattr(scorer, "__name__", None) or type(scorer).__name__)
