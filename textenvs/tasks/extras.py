"""What tasks of other packages share: loading the package, naming a task, and keeping its random numbers to itself."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from threading import RLock
from types import NoneType
from typing import Any

import numpy as np

_LOCK = RLock()


class OwnRandomness:
    """The state of Python's and numpy's global generators that one task sees, apart from that of everything else.

    One task at a time, whatever the thread; code outside of tasks that draws in another thread is not kept out.
    """

    def __init__(self, seed: int) -> None:
        self._state = (random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state())

    @contextmanager
    def active(self) -> Iterator[None]:
        """Put the task's state in the place of the global one, and back at the end."""
        with _LOCK:
            outside = _global_state()
            _set_global_state(self._state)
            try:
                yield
            finally:
                self._state = _global_state()
                _set_global_state(outside)


def load(module: str, extra: str) -> Any:
    """Import ``module``, without a trace in the global random state.

    Raises:
        ImportError: it, or a package that it needs, is not installed; the message has the command that installs it.
    """
    try:
        with OwnRandomness(0).active():
            return import_module(module)
    except ImportError as fault:
        raise ImportError(f"the extra {extra} is not installed: pip install 'textenvs[{extra}]' ({fault})") from fault


def as_settings(what: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of ``given``, None: an empty one; ValueError for what is no mapping of names to values."""
    if not isinstance(given, Mapping | NoneType):
        raise ValueError(f"{what}: expected a mapping of names to values, received {given!r:.200}")
    return dict(given or {})


def refuse_own(options: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if ``options`` have the part ``name``, which the task makes itself."""
    if name in options:
        raise ValueError(f"{name}: expected none, since the task has its own, received {options[name]!r:.200}")


def check_name(what: str, given: object, known: Iterable[str]) -> None:
    """Raise ValueError, with the nearest names, unless ``given`` is one of the ``known``."""
    names = sorted(known)
    if given not in names:
        near = get_close_matches(str(given), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"expected one of {', '.join(names)}"
        raise ValueError(f"{what}: received {given!r}; {hint}")


def _global_state() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()  # noqa: NPY002 (the generator that others' code draws from)


def _set_global_state(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
