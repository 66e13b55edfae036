"""Ends a process within seconds after another one of its training raised or was killed; it would wait for hours."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

FALLEN, LIVES, DONE = "textenvs/fallen", "textenvs/lives", "textenvs/done"
"""Keys of the processes' store: what befell one of them; where each lives; who has left in peace."""
EVERY, GRACE = 0.5, 2.0
"""Seconds between two looks; and for which the store of a process that raised is kept, to be read."""


@contextmanager
def watched(index: int, count: int) -> Iterator[None]:
    """Process ``index`` of ``count``, which ends with the others' fault inside of this context.

    That one was killed shows if it is of this machine. Of another, its launcher tells this one's.
    """
    store, over = dist.distributed_c10d._get_default_store(), threading.Event()
    here = _namespace()
    store.set(f"{LIVES}/{index}", f"{here} {os.getpid()}")

    def fallen() -> str | None:
        """What befell another process."""
        try:
            if store.check([FALLEN]):
                return store.get(FALLEN).decode()
            for other in (each for each in range(count) if each != index and store.check([f"{LIVES}/{each}"])):
                space, pid = store.get(f"{LIVES}/{other}").decode().split()
                if space == here and _is_gone(int(pid)) and not store.check([f"{DONE}/{other}"]):
                    return f"process {other} (pid {pid}) was killed"
        except RuntimeError:  # where its keeper was killed there is no store
            return "process 0, which keeps the processes' store, is gone"
        return None

    def watch() -> None:
        while not over.wait(EVERY):
            if (fault := fallen()) is not None:
                sys.stderr.write(f"error: process {index} stops, as {fault}\n")
                sys.stderr.flush()
                os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        store.set(f"{DONE}/{index}", "")
    except Exception as fault:
        over.set()
        # A connection that broke off tells what happened, not to whom.
        if isinstance(fault, RuntimeError | OSError) and (other := _soon(fallen)) is not None:
            raise RuntimeError(f"process {index} stops, as {other}") from fault
        store.set(FALLEN, f"process {index} raised {type(fault).__name__}: {fault}")
        time.sleep(GRACE)
        raise
    finally:
        over.set()
        watcher.join()


def _soon(fallen: Callable[[], str | None]) -> str | None:
    """What befell another process, which may still be about to end."""
    end = time.monotonic() + GRACE
    while (fault := fallen()) is None and time.monotonic() < end:
        time.sleep(0.1)
    return fault


def _namespace() -> str:
    """Names the machine, or its container, in which process numbers are unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended, its parent aware of it or not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
    except PermissionError:
        return False
    except ProcessLookupError:
        return True
    except OSError:  # no such file: it ended just now, or this system has none for any process
        return Path("/proc/self/stat").exists()
