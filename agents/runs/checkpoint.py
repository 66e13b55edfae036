"""One file that holds a whole training run: safetensors for arrays, JSON in its header for the rest; no pickle.

A file is written aside and renamed into place, so a kill in mid-write costs nothing; it carries its version and a
checksum, so a damaged or foreign one is refused with the reason.

What processes have sharded among them lies in a folder beside it, a file of each process, by torch's distributed
checkpoint in safetensors. The file names the folder with sizes and checksums of what is in it, and is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from agents.runs.distributed import ALONE, Processes, objects_group
from reward_models.aside import aside
from reward_models.gradients import is_shard

if TYPE_CHECKING:  # these take seconds, and only sharded models need them
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

VERSION = 1
KIND = "textenvs-checkpoint"
PARTS = ("policy", "module", "optimizer", "best", "average")
"""Keys of an agent's and of a fit's state that hold weights, or are as large."""
SHARDS = re.compile(r"shards_(\d+)(\.part)?")
"""Folders of sharded tensors beside a checkpoint; with the ending, unfinished ones."""


class CheckpointError(RuntimeError):
    """The checkpoint cannot be used; the message says why."""


@dataclass(frozen=True)
class Sharded:
    """A tensor that lies in a folder of shards, and its name there."""

    folder: str
    name: str
    shape: tuple[int, ...]
    dtype: str


def save(path: str | Path, state: dict[str, Any], processes: Processes = ALONE) -> Path:
    """Write ``state`` to ``path``, whole or not at all.

    Args:
        path: the file; its folder is made if it is missing.
        state: a tree of dicts, lists, tuples, numbers, strings, None, numpy arrays and tensors. That of the main
            process is written; of sharded tensors each process writes its part.
        processes: which all call this, if tensors are sharded.

    Returns:
        The path written.

    Raises:
        TypeError: for a leaf of any other type.
        OSError: if the disk is full or the folder cannot be written; what was there before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    shards: dict[int, DTensor] = {}
    packed = _pack(state, tensors, shards)
    written = _save_shards(path, list(shards.values()), processes) if shards else {}
    if processes.is_main:
        _write(path, tensors, json.dumps(packed | {"__shards__": written} if written else packed))
        if written:
            _delete_shards(path.parent, keep=written["folder"])
    if written:
        processes.all_gather(None)  # nobody goes on before it is whole
    return path


def _write(path: Path, tensors: dict[str, Tensor], tree: str) -> None:
    metadata = {"kind": KIND, "version": str(VERSION), "state": tree, "checksum": _checksum(tensors, tree)}
    with aside(path) as part:
        save_file(tensors, part, metadata=metadata)
        with open(part, "rb") as written:
            os.fsync(written.fileno())


def _save_shards(path: Path, shards: list[DTensor], processes: Processes) -> dict[str, Any]:
    """Write the processes' parts of ``shards`` to a new folder beside ``path``; its name, and each file's checksum."""
    from torch.distributed.checkpoint import hf_storage, state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException

    taken = [int(found[1]) for each in path.parent.iterdir() if (found := SHARDS.fullmatch(each.name))]
    folder = processes.broadcast(path.with_name(f"shards_{max(taken, default=0) + 1}"))
    aside = folder.with_name(f"{folder.name}.part")
    try:
        writer = hf_storage.HuggingFaceStorageWriter(str(aside), save_distributed=True)
        state_dict_saver.save(
            dict(zip(map(str, range(len(shards))), shards, strict=True)),
            storage_writer=writer,
            process_group=objects_group() if processes.count > 1 else None,
        )
        ours = {each.name: _file_checksum(each) for each in aside.glob(f"shard-{processes.index + 1:05}-*")}
        files = {name: checksum for each in processes.all_gather(ours) for name, checksum in each.items()}
        if processes.is_main:
            os.replace(aside, folder)
    except (Exception, CheckpointException) as error:  # of a full disk all processes hear
        first = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise OSError(f"cannot write the checkpoint {folder}: {first}") from error
    finally:
        if processes.is_main:
            shutil.rmtree(aside, ignore_errors=True)
    return {"folder": folder.name, "files": files}


def _delete_shards(folder: Path, keep: str) -> None:
    for each in folder.iterdir():
        if SHARDS.fullmatch(each.name) and each.name != keep:
            shutil.rmtree(each, ignore_errors=True)


def _file_checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**24):
            digest.update(part)
    return digest.hexdigest()


def load(path: str | Path) -> dict[str, Any]:
    """The state that ``save`` wrote, sharded tensors as whole ones; see ``read``."""
    return filled(read(path))


def filled(state: dict[str, Any], mesh: DeviceMesh | None = None) -> dict[str, Any]:
    """``state`` with the tensors that ``read`` left where they are: whole, or with ``mesh`` this process's shards.

    With ``mesh`` the whole tensors of ``PARTS`` become shards, too.
    """
    wanted: dict[Sharded, Tensor] = {}
    if mesh is not None:
        from torch.distributed.tensor import Shard, distribute_tensor, empty

    def tensor(leaf: Any) -> Any:
        if isinstance(leaf, Sharded):
            dtype, shape = getattr(torch, leaf.dtype), leaf.shape
            if mesh is None:
                return wanted.setdefault(leaf, torch.empty(shape, dtype=dtype))
            return wanted.setdefault(leaf, empty(shape, dtype=dtype, device_mesh=mesh, placements=[Shard(0)]))
        if mesh is not None and isinstance(leaf, Tensor) and leaf.dim():
            return distribute_tensor(leaf.to(mesh.device_type), mesh, [Shard(0)], src_data_rank=None)
        return leaf

    found = state | {key: pytree.tree_map(tensor, state[key]) for key in PARTS if key in state}
    if wanted:
        from torch.distributed.checkpoint import hf_storage, state_dict_loader

        reader = hf_storage.HuggingFaceStorageReader(next(iter(wanted)).folder)
        state_dict_loader.load(
            {leaf.name: value for leaf, value in wanted.items()}, storage_reader=reader, no_dist=True
        )
    return found


def read(path: str | Path) -> dict[str, Any]:
    """The state that ``save`` wrote; arrays come back as they were (numpy as numpy, tensors on the CPU), and sharded
    ones as `Sharded`.

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
    tree = json.loads(metadata["state"])
    shards = tree.pop("__shards__", None)
    folder = path.parent / (shards or {"folder": ""})["folder"]
    for name, checksum in (shards or {"files": {}})["files"].items():
        if not (folder / name).is_file() or _file_checksum(folder / name) != checksum:
            raise CheckpointError(f"the checkpoint {path} is damaged: {folder / name} is missing or half-written")
    state: dict[str, Any] = _unpack(tree, tensors, str(folder))
    return state


def _checksum(tensors: dict[str, Tensor], tree: str) -> str:
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _pack(value: Any, tensors: dict[str, Tensor], shards: dict[int, DTensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and is_shard(value):
        local: Tensor = value.to_local()  # type: ignore[attr-defined]
        storage = local.untyped_storage()._cdata  # tied weights, under two names, are written once
        shards.setdefault(storage, value)  # type: ignore[arg-type]
        return {"__sharded__": [list(shards).index(storage), list(value.shape), str(value.dtype)[len("torch.") :]]}
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        name = str(len(tensors))
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"__tensor__": name}
        tensors[name] = torch.from_numpy(np.array(value))
        return {"__array__": name}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, tensors, shards) for item in value]
        return {"__tuple__": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        pairs = [[_pack(key, tensors, shards), _pack(item, tensors, shards)] for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return dict(pairs)
        return {"__pairs__": pairs}
    raise TypeError(f"a checkpoint holds plain values, arrays and tensors, received {type(value).__name__}: {value!r}")


def _unpack(value: Any, tensors: Mapping[str, Tensor], folder: str) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors, folder) for item in value]
    if not isinstance(value, dict):
        return value
    if "__sharded__" in value:
        name, shape, dtype = value["__sharded__"]
        return Sharded(folder, str(name), tuple(shape), dtype)
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__array__" in value:
        return tensors[value["__array__"]].numpy()
    if "__tuple__" in value:
        return tuple(_unpack(item, tensors, folder) for item in value["__tuple__"])
    if "__pairs__" in value:
        return {_unpack(key, tensors, folder): _unpack(item, tensors, folder) for key, item in value["__pairs__"]}
    return {key: _unpack(item, tensors, folder) for key, item in value.items()}
