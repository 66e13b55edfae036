"""The folder of a reward model: atomic writing and validated reading."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from reward_models.aside import write_aside, write_json
from textenvs.lm.loading import check_numbers
from textenvs.tokens.tokenizers import HUB_NAME

FORMAT = "textenvs reward model"
VERSION = 2
DESCRIPTION = "reward_model.json"
WEIGHTS = "model.safetensors"


def write_model(folder: Path, weights: dict[str, Tensor], **description: Any) -> None:
    """Write ``model.safetensors``, then ``reward_model.json`` with format, version and ``description``."""
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    write_aside(folder / WEIGHTS, serialize(kept, metadata={"format": "pt"}))
    write_json(folder / DESCRIPTION, {"format": FORMAT, "version": VERSION, **description})


def read_description(path: Path, kind: str = FORMAT, version: int = VERSION) -> dict[str, Any]:
    """The content of a description file; ValueError if it is missing, damaged or not of format ``kind`` and
    ``version``."""
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
    """Description, backbone configuration and weights; ValueError as `read_description`, or for damaged ones."""
    description = read_description(folder / DESCRIPTION)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds a damaged reward model ({first_line(error)})") from error
    check_numbers(str(folder), weights)
    mean, std, longest = (description.get(name) for name in ("mean", "std", "max_length"))
    if not (_is_finite(mean) and _is_finite(std) and std > 0 and isinstance(longest, int) and longest > 0):
        raise ValueError(
            f"{folder} holds a damaged reward model: {DESCRIPTION} has mean {mean!r}, std {std!r}, max_length "
            f"{longest!r}"
        )
    return description, config, weights


def base_of(folder: Path) -> str | None:
    """Directory or name of the model below the adapter in ``folder``; None if there is no adapter of ours."""
    return read_description(folder / DESCRIPTION).get("base") if (folder / DESCRIPTION).exists() else None


def is_foreign(path: str | Path) -> bool:
    """Whether a path is a model that was not saved here: a folder of transformers, or "owner/name" on the hub."""
    folder = Path(path)
    if folder.is_dir():
        return (folder / "config.json").exists() and not (folder / DESCRIPTION).exists()
    return not folder.exists() and re.fullmatch(HUB_NAME, str(path)) is not None


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def first_line(error: Exception) -> str:
    """An error's message, shortened to its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
