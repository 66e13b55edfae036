"""Gymnasium spaces on one side, flat float32 observations ``[B, D]`` and stored actions on the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

ACTION_MASK = "action_mask"
"""Key of a Dict observation with the mask of allowed actions; it becomes the last columns."""


class ObservationEncoder:
    """Flattens observations of a space: Box, Discrete and MultiDiscrete (one-hot), MultiBinary, Dict and Tuple.

    A Dict's key ``"action_mask"`` (any non-zero = allowed) is put last, where the policy finds it. Images are scaled to
    [0, 1].

    Raises:
        ValueError: for a space that has no fixed flat size, and for a choice outside its space.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        self.mask_size = 0
        self._plain = isinstance(space, spaces.Box) and not is_image(space)
        if isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces:
            self.mask_size = _width(space.spaces[ACTION_MASK])
        self.size = _width(space)

    def __call__(self, observations: object) -> NDArray[np.float32]:
        """Batched observations, as a vector environment gives them, to ``[B, size]`` float32."""
        if self._plain:
            array = np.asarray(observations, np.float32)
            return array if array.ndim == 2 else array.reshape(len(array), -1)
        return np.concatenate(_columns(self.space, observations), axis=1)

    def describe(self, column: int) -> str:
        """Which entry of an observation became ``column``: ``observation['position'][2]``."""
        return _names(self.space, "observation")[column]

    def bounds(self) -> NDArray[np.float32]:
        """The least and the largest number of each column, ``[2, size]``."""
        return np.array(_bounds(self.space), np.float32).T

    def is_single(self, observation: Any) -> bool:
        """Whether ``observation`` is one observation rather than a batch of them."""
        space: spaces.Space[Any] = self.space
        while isinstance(space, (spaces.Dict, spaces.Tuple)):
            key, space = _parts(space)[0]
            observation = observation[key]
        return np.ndim(observation) == len(space.shape or ())

    def single(self, observation: object) -> NDArray[np.float32]:
        """One observation to ``[1, size]`` float32."""
        return self(_batch_of_one(self.space, observation))


class ActionDecoder:
    """Converts stored actions to the action ``space``: clipped to a Box, offset by a Discrete's ``start``."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        start = getattr(space, "start", 0)
        self.start = None if not np.any(start) else np.asarray(start)

    def __call__(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Stored actions ``[B]`` or ``[B, K]`` to ``[B, *space.shape]``, in the space's dtype."""
        if isinstance(self.space, spaces.Discrete):
            return actions if self.start is None else actions + self.start
        shaped = actions.reshape(len(actions), *(self.space.shape or ()))
        if isinstance(self.space, spaces.Box):
            shaped = np.clip(shaped, self.space.low, self.space.high)
        elif self.start is not None:
            shaped = shaped + self.start
        return shaped.astype(self.space.dtype, copy=False)


def _parts(space: spaces.Space[Any]) -> list[tuple[Any, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        keys = [key for key in space.spaces if key != ACTION_MASK]
        keys += [ACTION_MASK] if ACTION_MASK in space.spaces else []
        return [(key, space.spaces[key]) for key in keys]
    assert isinstance(space, spaces.Tuple)
    return list(enumerate(space.spaces))


def _width(space: spaces.Space[Any]) -> int:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return sum(_width(part) for _, part in _parts(space))
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return spaces.flatdim(space)
    raise ValueError(f"observations of {space} do not flatten; use Box, Discrete, MultiDiscrete, MultiBinary or Dict")


def _columns(space: spaces.Space[Any], batch: Any) -> list[NDArray[np.float32]]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [column for key, part in _parts(space) for column in _columns(part, batch[key])]
    array = np.asarray(batch)
    array = array.reshape(len(array), -1)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        array, sizes = (
            array - np.reshape(space.start, -1),
            np.reshape(getattr(space, "nvec", getattr(space, "n", 0)), -1),
        )
        if ((array < 0) | (array >= sizes)).any():
            raise ValueError(f"observation: expected choices of {space}, received {np.asarray(batch)!r}")
        return [np.eye(int(n), dtype=np.float32)[array[:, i]] for i, n in enumerate(sizes)]
    return [array.astype(np.float32) / np.float32(255 if is_image(space) else 1)]


def is_image(space: spaces.Space[Any]) -> bool:
    """Whether observations are pixels, as Stable-Baselines3 recognizes them: uint8 from 0 to 255, in 2 axes or more."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) < 2:
        return False
    return bool((space.low == 0).all() and (space.high == 255).all())


def _names(space: spaces.Space[Any], name: str) -> list[str]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [found for key, part in _parts(space) for found in _names(part, f"{name}[{key!r}]")]
    if isinstance(space, spaces.Box):
        return [name + "".join(f"[{i}]" for i in index) for index in np.ndindex(space.shape)]
    return [name] * _width(space)


def _bounds(space: spaces.Space[Any]) -> list[tuple[float, float]]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [found for _, part in _parts(space) for found in _bounds(part)]
    if isinstance(space, spaces.Box) and not is_image(space):
        return list(zip(space.low.flat, space.high.flat, strict=True))
    return [(0.0, 1.0)] * _width(space)


def _batch_of_one(space: spaces.Space[Any], observation: Any) -> Any:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return {key: _batch_of_one(part, observation[key]) for key, part in _parts(space)}
    return np.asarray(observation)[None]


def space_to_dict(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space as a tree of plain values and arrays, so that a saved agent can predict without its environment;
    ValueError for a space other than Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple."""
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


def space_from_dict(data: dict[str, Any]) -> spaces.Space[Any]:
    """Invert ``space_to_dict``; ValueError for an unknown kind."""
    kind, settings = data["kind"], {name: value for name, value in data.items() if name != "kind"}
    if "dtype" in settings:
        settings["dtype"] = np.dtype(settings["dtype"]).type
    if kind in ("Box", "Discrete", "MultiDiscrete"):
        return getattr(spaces, kind)(**settings)
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["shape"])
    if kind == "Dict":
        return spaces.Dict({key: space_from_dict(part) for key, part in data["parts"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_from_dict(part) for part in data["parts"]])
    raise ValueError(f"unknown type of space: {kind!r}")
