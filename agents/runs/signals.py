"""What Ctrl-C and SIGTERM do to a command: at once they end it, in training after the update in progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal ended a command; its exit code is 128 + ``signum``."""

    def __init__(self, message: str = "", signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = int(signum)


@dataclass
class Stop:
    """Set by the first signal."""

    signum: int | None = None

    def is_set(self) -> bool:
        """Whether a signal came."""
        return self.signum is not None


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Interrupted`, as Ctrl-C raises KeyboardInterrupt: folders and processes are cleared up."""

    def handle(signum: int, frame: object) -> None:
        raise Interrupted(signum=signum)

    with _handled(handle, signal.SIGTERM):
        yield


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM sets the ``Stop``, so that the update in progress ends; the second one raises."""
    stop = Stop()

    def handle(signum: int, frame: object) -> None:
        if stop.is_set():
            raise Interrupted(signum=signum)
        stop.signum = signum

    with _handled(handle, signal.SIGINT, signal.SIGTERM):
        yield stop


@contextmanager
def _handled(handle: Callable[[int, Any], None], *signals: int) -> Iterator[None]:
    """Let ``handle`` answer the signals; elsewhere than in the main thread, which alone may, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {each: signal.signal(each, handle) for each in signals}
    try:
        yield
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)
