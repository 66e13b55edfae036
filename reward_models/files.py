"""The folder of a reward model: what lies in it, written so that half a file never stands there, and read with care.

Not here: the model that it makes (`model.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

FORMAT = "textenvs reward model"
VERSION = 1
DESCRIPTION = "reward_model.json"
WEIGHTS = "model.safetensors"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One JSON object at ``path``, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same for bytes."""
    aside = path.with_name(path.name + ".part")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_model(folder: Path, weights: dict[str, Tensor], **description: Any) -> None:
    """``model.safetensors`` and, after it, ``reward_model.json``: format, version and what else describes the model."""
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    write_bytes(folder / WEIGHTS, serialize(kept, metadata={"format": "pt"}))
    write_json(folder / DESCRIPTION, {"format": FORMAT, "version": VERSION, **description})


def read_description(path: Path, kind: str = FORMAT, version: int = VERSION) -> dict[str, Any]:
    """What a description says.

    Args:
        path: the file.
        kind: the format that is expected.
        version: the version that is expected.

    Raises:
        ValueError: if it is missing, damaged or of another format or version.
    """
    what = kind.partition(" ")[2]
    if not path.exists():
        raise ValueError(f"{path.parent} holds no {what}: {path.name} is missing")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        found = description.get("format"), description.get("version")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path.parent} holds a damaged {what} ({first_line(error)})") from error
    if found != (kind, version):
        raise ValueError(f"{path.parent} holds {description}, expected {kind} of version {version}")
    return dict(description)


def read_model(folder: Path) -> tuple[dict[str, Any], PretrainedConfig, dict[str, Tensor]]:
    """Description, the backbone's configuration, and weights.

    Raises:
        ValueError: if the folder holds no reward model of this version, or a damaged one.
    """
    description = read_description(folder / DESCRIPTION)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return description, config, load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds a damaged reward model ({first_line(error)})") from error


def base_of(folder: Path) -> str | None:
    """Directory or name of the model that the reward model in ``folder`` is an adapter over; None if it is whole."""
    return read_description(folder / DESCRIPTION).get("base")


def first_line(error: Exception) -> str:
    """An error's message, shortened to its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
