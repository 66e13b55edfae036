"""Gymnasium spaces as plain data, so that a saved agent can predict without its environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


def space_to_dict(space: spaces.Space) -> dict[str, Any]:
    """A space as a tree of plain values and arrays.

    Raises:
        ValueError: for a space other than Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple.
    """
    if isinstance(space, spaces.Box):
        return {"kind": "Box", "low": space.low, "high": space.high, "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec, "start": space.start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "parts": {key: space_to_dict(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "parts": [space_to_dict(part) for part in space.spaces]}
    raise ValueError(f"{space} cannot be saved with an agent")


def space_from_dict(data: dict[str, Any]) -> spaces.Space:
    """Invert ``space_to_dict``.

    Raises:
        ValueError: for an unknown kind.
    """
    kind = data["kind"]
    if kind == "Box":
        return spaces.Box(data["low"], data["high"], dtype=np.dtype(data["dtype"]).type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], dtype=np.dtype(data["dtype"]).type, start=data["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["shape"])
    if kind == "Dict":
        return spaces.Dict({key: space_from_dict(part) for key, part in data["parts"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_from_dict(part) for part in data["parts"]])
    raise ValueError(f"unknown type of space: {kind!r}")
