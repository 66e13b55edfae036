"""Checks settings at the door: each value against its field's annotation and against the range that it must lie in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from agents.functional.schedules import Linear

_hints: Callable[[Any], dict[str, Any]] = lru_cache(get_type_hints)
WORDS: dict[Any, str] = {
    float: "a finite number", int: "a whole number", str: "text", Path: "a path", bool: "True or False",
    NoneType: "None",
}  # fmt: skip


def check_values(settings: Any, ranges: Mapping[str, str] | None = None) -> None:
    """Raise ValueError unless every setting is of its annotated type, finite, and in its range.

    Args:
        settings: a dataclass.
        ranges: names of settings by their range: ``{">= 1": "epochs batch_size", "in [0, 1)": "dropout"}``. None lies
            in every range, a ``Linear`` where it starts.
    """
    for name, hint in _hints(type(settings)).items():
        value = getattr(settings, name)
        if not _fits(value, hint):
            raise ValueError(f"{name}: expected {_words(hint)}, received {value!r}")
    for interval, names in (ranges or {}).items():
        for name in names.split():
            value = getattr(settings, name)
            number = value.start if isinstance(value, Linear) else value
            if number is not None and not _inside(number, interval):
                raise ValueError(f"{name}: expected a number {interval}, received {value}")


def changed(settings: Any, *names: str) -> list[str]:
    """Those of ``names`` that have another value than their default."""
    defaults = type(settings).__dataclass_fields__
    return [name for name in names if getattr(settings, name) != defaults[name].default]


def refuse_changed(settings: Any, names: Sequence[str], why: str) -> None:
    """Raise ValueError, with ``why``, if some of ``names`` have another value than their default."""
    if unread := changed(settings, *names):
        raise ValueError(f"{', '.join(unread)}: {why}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in args)
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(each, args[0]) for each in value)
    if hint in (int, float):
        number = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if hint in (str, Path):
        return isinstance(value, str | Path)
    return hint is Any or isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin in (Union, UnionType):
        return " or ".join(map(_words, args))
    if origin is tuple:
        return f"several, each {_words(args[0])}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _inside(number: float, interval: str) -> bool:
    if interval.startswith(">"):
        least = float(interval.split()[1])
        return number > least or (number == least and interval.startswith(">="))
    low, high = (float(end) for end in interval[4:-1].split(","))
    return low <= number <= high and (number > low or interval[3] == "[") and (number < high or interval[-1] == "]")
