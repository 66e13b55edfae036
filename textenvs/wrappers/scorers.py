"""Who is asked for scores, and for what: token ids or text, with or without word of how the text ended.

Not here: how several scores become one (see `combining`), and when they are paid (see `preference`).
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenvs.tokens.checks import as_numbers
from textenvs.tokens.rows import ended_by_themselves
from textenvs.tokens.tokenizers import decode_rows, same_tokenizer


@dataclass(frozen=True)
class _Member:
    """One that scores."""

    place: str
    """How messages call it: its place in the list and its name."""
    scorer: Any
    listed: int
    """Index of what the caller listed: the scorer itself, or the ensemble that it belongs to."""
    reads_tokens: bool
    """Token ids (True) or text (False)."""
    takes_finished: bool
    """Whether, called on text, it is told which texts ended by themselves."""


class Scorers:
    """The scorers of one environment, ensembles among them taken apart into their members.

    Args:
        scorer: one scorer or a list; see `textenvs.wrappers.preference.PreferenceReward` for what a scorer is.
        tokenizer: the environment's, or None.
        eos_token_id: the token that ends a text, or None.
        names: one for each scorer listed. None: the scorers' own names, numbered where two are the same.

    Raises:
        ValueError: no scorer, one that can be called in no way or has other parameters, or names that are not as many,
            or not different.
    """

    def __init__(
        self, scorer: Any, *, tokenizer: Any, eos_token_id: int | None, names: Sequence[str] | None = None
    ) -> None:
        several = isinstance(scorer, Sequence)
        listed = list(scorer) if several else [scorer]
        if not listed:
            raise ValueError("scorer: received an empty list; at least one scorer is needed")
        names = _names(listed) if names is None else list(names)
        if len(names) != len(listed) or len(set(names)) != len(names):
            raise ValueError(f"names: expected {len(listed)} different ones, received {names}")
        self._tokenizer = tokenizer
        self._eos_token_id = eos_token_id
        self.num_listed = len(listed)
        """How many were listed, each ensemble counted once."""
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
        """The members' names: of an ensemble called "name" they are "name/0", "name/1" and so on."""

    def __len__(self) -> int:
        return len(self._members)

    def shared_out(self, weights: Sequence[float]) -> list[float]:
        """Weights of the members, from one for each scorer listed: an ensemble's is shared out evenly."""
        sizes = np.bincount([member.listed for member in self._members])
        return [float(weights[member.listed] / sizes[member.listed]) for member in self._members]

    def __call__(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores ``[K, N]`` of the K members, of rows ``[N, P]`` and ``[N, T]`` padded with PAD.

        Raises:
            ValueError: a member returned NaN, an infinity or another shape; the message names it.
            RuntimeError: a member raised; the message says what, and where.
        """
        texts: tuple[list[str], list[str]] = ([], [])
        if not all(member.reads_tokens for member in self._members):
            texts = decode_rows(self._tokenizer, prompts, completions)
        finished = ended_by_themselves(completions, self._eos_token_id).tolist()
        scores = []
        for member in self._members:
            # Each gets copies: one that sorts or clears what it is given changes nothing for the next.
            try:
                if member.reads_tokens:
                    values = member.scorer.score_tokens(prompts.copy(), completions.copy())
                elif member.takes_finished:
                    values = member.scorer(*map(list, texts), finished=list(finished))
                else:
                    values = member.scorer(*map(list, texts))
            except Exception as fault:
                last = traceback.extract_tb(fault.__traceback__)[-1]
                where = f"{type(fault).__name__}: {fault} ({last.filename}:{last.lineno})"
                raise RuntimeError(f"{member.place} failed on {len(completions)} texts: {where}") from fault
            scores.append(as_numbers(values, (len(completions),), member.place))
        return np.stack(scores)

    def _member(self, place: str, scorer: Any, listed: int) -> _Member:
        reads_tokens = self._wants_tokens(place, scorer)
        return _Member(place, scorer, listed, reads_tokens, not reads_tokens and takes_finished(scorer))

    def _wants_tokens(self, place: str, scorer: Any) -> bool:
        """Whether `scorer` gets token ids (True) or text (False); raises if it can get neither."""
        own = self._tokenizer
        theirs = getattr(scorer, "tokenizer", None)
        if hasattr(scorer, "score_tokens") and (theirs is None or (own is not None and same_tokenizer(theirs, own))):
            return True
        if not callable(scorer):
            what = "its tokenizer is not the environment's, and it" if hasattr(scorer, "score_tokens") else "it"
            raise ValueError(f"{place}: {what} cannot be called on text; received {scorer!r:.200}")
        if own is None:
            raise ValueError(f"{place}: it reads text, and the environment has no tokenizer to decode with")
        _check_signature(place, scorer)
        return False


def _check_signature(place: str, scorer: Any) -> None:
    """Raise unless ``scorer(prompts, completions)`` can be called, with ``finished`` if it wants that."""
    try:
        signature = inspect.signature(scorer)
    except (TypeError, ValueError):  # some callables that are not written in Python
        return
    try:
        signature.bind([], [], **({"finished": []} if takes_finished(scorer) else {}))
    except TypeError as fault:
        raise ValueError(
            f"{place}: it is called as scorer(prompts, completions), or with finished=..., and its parameters are "
            f"{signature}: {fault}"
        ) from fault


def takes_finished(scorer: Any) -> bool:
    """Whether a callable has a parameter ``finished`` that can be given by its name."""
    try:
        parameter = inspect.signature(scorer).parameters.get("finished")
    except (TypeError, ValueError):  # some callables that are not written in Python
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _names(scorers: Sequence[Any]) -> list[str]:
    names = [_name(scorer) for scorer in scorers]
    return [f"{name}_{index}" if names.count(name) > 1 else name for index, name in enumerate(names)]


def _name(scorer: Any) -> str:
    return str(getattr(scorer, "__name__", None) or type(scorer).__name__)
