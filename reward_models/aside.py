"""Files are written aside and renamed into place, so that neither a reader nor a kill ever meets half of one."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PART = ".part"


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A neighbor of ``path``, of this process alone, which takes its place at the end; not after an exception."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with named_faults(path):
            yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """Let safetensors report what the disk refuses, a full one for instance, as an OSError that names ``path``."""
    try:
        yield
    except SafetensorError as fault:
        raise OSError(f"cannot write {path}: {fault}") from fault


def write_aside(path: Path, content: str | bytes) -> None:
    """Write text or bytes."""
    with aside(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON; what it does not know, a path for instance, becomes text."""
    write_aside(path, json.dumps(content, indent=2, default=str) + "\n")


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure of matplotlib's as PNG."""
    with aside(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path
