"""One file that holds a whole training run: safetensors for arrays, JSON in its header for the rest; no pickle.

A file is written aside and renamed into place, so a kill in mid-write costs nothing; it carries its version and a
checksum, so a damaged or foreign one is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

VERSION = 1
KIND = "textenvs-checkpoint"


class CheckpointError(RuntimeError):
    """The checkpoint cannot be used; the message says why."""


def save(path: str | Path, state: dict[str, Any]) -> Path:
    """Write ``state`` to ``path``, whole or not at all.

    Args:
        path: the file; its folder is made if it is missing.
        state: a tree of dicts, lists, tuples, numbers, strings, None, numpy arrays and tensors.

    Returns:
        The path written.

    Raises:
        TypeError: for a leaf of any other type.
        OSError: if the disk is full or the folder cannot be written; what was there before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, tensors))
    metadata = {"kind": KIND, "version": str(VERSION), "state": tree, "checksum": _checksum(tensors, tree)}
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, aside, metadata=metadata)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    except OSError:
        raise
    except Exception as error:  # safetensors reports a full disk as its own error
        raise OSError(f"cannot write the checkpoint {path}: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def load(path: str | Path) -> dict[str, Any]:
    """The state that ``save`` wrote; arrays come back as they were (numpy as numpy, tensors on the CPU).

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from error
    if metadata.get("kind") != KIND:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of this project")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(f"{path} is of version {metadata.get('version')}, this program reads version {VERSION}")
    if metadata.get("checksum") != _checksum(tensors, metadata["state"]):
        raise CheckpointError(f"the checkpoint {path} is damaged: its checksum does not match")
    return _unpack(json.loads(metadata["state"]), tensors)


def _checksum(tensors: dict[str, Tensor], tree: str) -> str:
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        name = str(len(tensors))
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"__tensor__": name}
        tensors[name] = torch.from_numpy(np.array(value))
        return {"__array__": name}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, tensors) for item in value]
        return {"__tuple__": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        pairs = [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return dict(pairs)
        return {"__pairs__": pairs}
    raise TypeError(f"a checkpoint holds plain values, arrays and tensors, received {type(value).__name__}: {value!r}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__array__" in value:
        return tensors[value["__array__"]].numpy()
    if "__tuple__" in value:
        return tuple(_unpack(item, tensors) for item in value["__tuple__"])
    if "__pairs__" in value:
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value["__pairs__"]}
    return {key: _unpack(item, tensors) for key, item in value.items()}
