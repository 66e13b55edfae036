"""Rows of data from every kind of file, and which of their columns count: one reader for all stages and commands."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from textenvs.tokens.tokenizers import HUB_NAME

Source: TypeAlias = "str | os.PathLike[str]"
Kind = Literal["chats", "completions", "prompts", "texts"]
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "chats": ("messages",),
    "completions": ("prompt", "completion"),
    "prompts": ("prompt",),
    "texts": ("text",),
}
"""What rows are, by the columns that they have; where a row has the columns of several, the first of these counts."""
ON_THE_HUB = re.compile(HUB_NAME + r"(:[\w.-]+){0,2}")
""""owner/name", "owner/name:split" or "owner/name:configuration:split"."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    columns: dict[str, Any]
    """By name; those without a value (null, or an empty cell of a CSV file) are left out."""
    place: str
    """For messages: "my.jsonl:3", the file and line where it begins; or "my.parquet[2]", counted from 0."""


def read_rows(source: Source, *, bare: str | None = None) -> list[Row]:
    """All rows of ``source``; see `iterate_rows`."""
    return list(iterate_rows(source, bare=bare))


def iterate_rows(source: Source, *, bare: str | None = None) -> Iterator[Row]:
    """The rows of a file or data set in their order; blank lines are skipped.

    Args:
        source: a ``.jsonl`` file (an object a line), ``.json`` (a list of objects), ``.csv`` (with a header; a cell
            that begins with ``[{`` is a chat in JSON), ``.parquet`` (needs pyarrow), ``.txt`` (a line each), a folder
            that ``Dataset.save_to_disk`` wrote, or a data set of the hub, "owner/name", "owner/name:split" or
            "owner/name:configuration:split" (both need datasets; the split is "train" if none is named).
        bare: the column that lines of a ``.txt`` file are; None refuses such files.

    Raises:
        ValueError: the file is of another kind or has no row, a row cannot be read, or a text in it is not Unicode; the
            message names file and line.
        FileNotFoundError: no such file.
        ImportError: a package that this kind needs is not installed.
    """
    path, found = Path(source), False
    readers = _READERS if bare is None else _READERS | {".txt": lambda path: _bare_lines(path, bare)}
    reader = readers.get(path.suffix)
    if path.is_file() and reader is not None:
        rows = reader(path)
    elif path.is_dir() or (reader is None and not path.exists() and ON_THE_HUB.fullmatch(os.fspath(source))):
        rows = _data_set(os.fspath(source))
    elif not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}")
    else:
        raise ValueError(f"{path}: expected a file of rows ({', '.join(readers)}), received a {path.suffix!r} file")
    for place, columns in rows:
        found = True
        yield as_row(columns, place)
    if not found:
        raise ValueError(f"{path}: expected at least one row, received none")


def as_row(columns: object, place: str) -> Row:
    """A row with the ``columns`` that have a value.

    Raises:
        ValueError: no object, or a text in it is not Unicode; the message names ``place``.
    """
    with at(place):
        if not isinstance(columns, Mapping):
            raise ValueError(f"expected a JSON object, received {str(columns)[:80]!r}")
        columns = {name: value for name, value in columns.items() if value is not None}
        for name, value in columns.items():
            check_unicode(value, name)
    return Row(columns, place)


@contextmanager
def at(place: str) -> Iterator[None]:
    """Let every error name ``place``, whatever type a library gives it."""
    try:
        yield
    except Exception as fault:
        kind = "" if isinstance(fault, ValueError) else f"{type(fault).__name__}: "
        raise ValueError(f"{place}: {kind}{fault}") from fault


def check_unicode(value: object, name: str) -> None:
    """Raise ValueError if a text in ``value``, however deep, has half of a surrogate pair, which no tokenizer takes."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as fault:
            raise ValueError(
                f"{name}: expected Unicode text, received the lone surrogate {value[fault.start]!r} at character "
                f"{fault.start} (half of a character, of a text that was cut in two)"
            ) from fault
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            check_unicode(part, name)


def kind_of(columns: Mapping[str, Any], kinds: Sequence[Kind]) -> Kind:
    """The first of `COLUMNS`, and of ``kinds``, whose columns a row has; ValueError if it has none of them."""
    allowed = {kind: names for kind, names in COLUMNS.items() if kind in kinds}
    for kind, names in allowed.items():
        if all(name in columns for name in names):
            return kind
    wanted = ", or ".join(map(column_names, allowed))
    raise ValueError(f"expected {wanted}; received {', '.join(columns) or 'no column at all'}")


def column_names(kind: Kind) -> str:
    """The columns of a kind of rows, for messages."""
    return " and ".join(COLUMNS[kind])


def statement(what: str, num_train: int, num_heldout: int) -> str:
    """The line with which a command begins: which rows it read, from which of their columns."""
    return f"{num_train + num_heldout} rows: {what}; {num_heldout} held out by prompt"


def hold_out(keys: Sequence[bytes], most: int, *, seed: int | None = None) -> tuple[list[int], list[int]]:
    """Numbers of the rows to train on and of at most ``most`` to hold out; rows with the same key stay together.

    Where every key has more rows than that, those of a key with fewest are held out.

    Args:
        keys: of each row, what must not be on both sides: its prompt.
        most: rows held out; one row at least is trained on.
        seed: chooses the keys; None: those that come first.

    Raises:
        ValueError: all rows have the same key.
    """
    groups: dict[bytes, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    if len(groups) < 2:
        raise ValueError(f"expected two different prompts at least, one of them to hold out, received {len(groups)}")
    order = list(groups) if seed is None else random.Random(seed).sample(sorted(groups), len(groups))
    most, heldout = min(most, len(keys) - 1), set[int]()
    for key in order:
        if len(heldout) + len(groups[key]) <= most:
            heldout.update(groups[key])
    heldout = heldout or set(groups[min(order, key=lambda key: len(groups[key]))])
    train = [number for number in range(len(keys)) if number not in heldout]
    assert not {keys[number] for number in train} & {keys[number] for number in heldout}
    return train, sorted(heldout)


def left_over(keys: Sequence[Set[object]], taken: Set[object], source: object) -> list[int]:
    """Numbers of the rows that have none of their ``keys`` in ``taken``; warn if there are others.

    Raises:
        ValueError: there is none: ``source``, whose keys are ``taken``, has all of them.
    """
    train = [number for number, row in enumerate(keys) if not row & taken]
    if not train:
        raise ValueError(f"{source}: expected prompts other than those to train on, received all of them")
    if len(train) < len(keys):
        left_out = len(keys) - len(train)
        warnings.warn(f"{left_out} rows are not trained on: {source} holds their prompts out", stacklevel=2)
    return train


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}:{number}"
                try:  # a byte order mark, as some editors begin a file, is no text
                    yield place, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as fault:
                    raise ValueError(f"{place}: expected UTF-8 text, received {fault}") from fault


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except ValueError as fault:
        raise ValueError(f"expected JSON, received {text[:80]!r} ({fault})") from fault


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_once([name for name, _ in pairs])
    return dict(pairs)


def _check_once(names: Sequence[str]) -> None:
    """Raise ValueError for a name that occurs more than once: readers silently take the last."""
    if len(set(names)) < len(names):
        raise ValueError(f"expected each name once, received {max(names, key=names.count)!r} more than once")


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for place, line in _lines(path):
        with at(place):
            content = _json(line)
        yield place, content


def _json_list(path: Path) -> Iterator[tuple[str, Any]]:
    text = "\n".join(line for _, line in _lines(path))
    if not text.lstrip().startswith("["):  # many a .json file is one of JSON lines
        yield from _json_lines(path)
        return
    with at(str(path)):
        content = _json(text)
    yield from ((f"{path}[{index}]", row) for index, row in enumerate(content))


def _bare_lines(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    yield from ((place, {column: line}) for place, line in _lines(path))


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # long texts
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows: Any = csv.DictReader(file, strict=True, restval="")
        while True:
            with at(f"{path}:{rows.line_num + 1}"):
                _check_once([name for name in rows.fieldnames or [] if name])
                row = next(rows, None)
            if row is None:
                return
            more = row.pop(None, None)
            row.pop("", None)  # the column of row numbers that pandas writes
            place = f"{path}:{rows.line_num - sum(cell.count(os.linesep[-1]) for cell in row.values())}"
            with at(place):
                if more:
                    raise ValueError(f"expected {len(row)} cells, as the header has, received {len(row) + len(more)}")
                cells = {name: _json(cell) if cell.startswith("[{") else cell for name, cell in row.items() if cell}
            yield place, cells


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as fault:
        raise ImportError(f"{path}: parquet files need pyarrow: pip install pyarrow") from fault
    with at(str(path)):
        batches = ParquetFile(path).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
    yield from ((f"{path}[{index}]", row) for index, row in enumerate(rows))


def _data_set(name: str) -> Iterator[tuple[str, Any]]:
    folder = Path(name)
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError as fault:
        what = "a folder of rows" if folder.is_dir() else "no such file, and a data set of the hub"
        raise ImportError(f"{name}: {what} needs the package datasets: pip install datasets") from fault
    with at(name):
        if folder.is_dir():
            rows = load_from_disk(name)
        else:
            hub, *middle = name.split(":")
            rows = load_dataset(hub, *middle[:-1], split=(middle or ["train"])[-1])
        if isinstance(rows, dict):
            if "train" not in rows:
                raise ValueError(
                    f"expected a split 'train', received {', '.join(rows)}: pass the folder of one of them"
                )
            rows = rows["train"]
    yield from ((f"{name}[{index}]", row) for index, row in enumerate(rows))


_READERS = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv, ".parquet": _parquet}
