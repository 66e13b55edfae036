"""Copy the plain attributes of an object (numbers, strings, arrays, generators) and convert them back, without pickle.

Attributes that are neither plain nor known to be stateless are reported, so a partial copy never looks complete.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

GENERATOR = "__numpy_generator__"
ARRAY = "__array_of_bytes__"
NOT_PLAIN = "__not_plain__"
"""Placeholder for a value that is not plain data."""
SKIPPED = {"metadata", "spec", "_cached_spec", "_action_space", "_observation_space", "_metadata", "env_fns"}
FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, np.ufunc)
STATELESS = (gym.Space, EnvSpec, AutoresetMode, type, types.ModuleType, np.dtype, *FUNCTIONS)


def attributes(owner: object) -> dict[str, Any]:
    """The plain attributes of ``owner``, copied."""
    shared = set(_shared([owner]))
    found = {name: plain(value) for name, value in _own(owner).items() if (id(owner), name) not in shared}
    return {name: value for name, value in found.items() if not is_hidden(value)}


def layers(env: gym.Env | VectorEnv) -> list[Any]:
    """``env`` and what its wrappers wrap, from the outside to the inside."""
    found: list[Any] = [env]
    while isinstance(found[-1], (gym.Wrapper, VectorWrapper)):
        found.append(found[-1].env)
    return found


def hidden_in(env: gym.Env | VectorEnv) -> list[str]:
    """Attributes that may hold state but are not plain data, of all layers without a state dict of their own."""
    read = [layer for layer in layers(env) if not has_state_dict(layer)]
    shared = set(_shared(read))
    return [
        f"{type(layer).__name__}.{name}"
        for layer in read
        for name, value in _own(layer).items()
        if (id(layer), name) in shared or (not _stateless(value) and is_hidden(plain(value)))
    ]


def _own(layer: object) -> dict[str, Any]:
    """The attributes of ``layer`` itself; what a wrapper wraps is another layer."""
    skipped = SKIPPED | ({"env"} if isinstance(layer, (gym.Wrapper, VectorWrapper)) else set())
    return {name: value for name, value in vars(layer).items() if name not in skipped}


def _shared(owners: list[Any]) -> Iterator[tuple[int, str]]:
    """Attributes that share a list, a dict or an array's memory with an earlier one: copies would part them."""
    seen = dict[int, object]()  # holds the objects, so that no id is used again
    for owner in owners:
        for name, value in _own(owner).items():
            if _is_seen(value, seen, top=True):
                yield id(owner), name


def _is_seen(value: Any, seen: dict[int, object], *, top: bool = False) -> bool:
    """Whether ``value``, or a part of it, is among ``seen``, which it joins."""
    if isinstance(value, tuple):
        return any([_is_seen(part, seen) for part in value])
    while isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
        value = value.base
    # The state of a generator that is an attribute is loaded in place, which parts nothing.
    if not isinstance(value, (list, dict, deque, np.ndarray, *(() if top else (np.random.Generator,)))):
        return False
    if id(value) in seen:
        return True
    seen[id(value)] = value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, deque)) else ()
    return any([_is_seen(part, seen) for part in parts])


def has_state_dict(owner: object) -> bool:
    """Whether ``owner`` has ``state_dict`` and ``load_state_dict``."""
    return hasattr(type(owner), "state_dict") and hasattr(type(owner), "load_state_dict")


def is_hidden(value: object) -> bool:
    """Whether ``plain`` could not represent the value."""
    return isinstance(value, str) and value == NOT_PLAIN


def plain(value: object) -> object:
    """``value`` copied as plain data, or ``NOT_PLAIN``: also for subclasses, which would come back as their base."""
    kind = type(value)
    if kind in (types.NoneType, bool, int, float, str):
        return value
    if isinstance(value, np.random.Generator):
        return {GENERATOR: value.bit_generator.state}
    if isinstance(value, np.generic):
        array = plain(np.array(value))
        return NOT_PLAIN if is_hidden(array) else {"__numpy_scalar__": array}
    if isinstance(value, np.ndarray):
        dtype = value.dtype
        if kind is not np.ndarray or dtype.hasobject or dtype.kind == "V":
            return NOT_PLAIN
        if dtype.kind in "biufc" and dtype.isnative and dtype.char not in "gG":
            return value.copy()
        # Text and dates (the map of FrozenLake, say) as their bytes: a checkpoint holds numbers only.
        return {ARRAY: np.array(bytearray(value.tobytes())), "dtype": dtype.str, "shape": list(value.shape)}
    if isinstance(value, (list, tuple, deque)) and kind in (list, tuple, deque):
        items = [plain(item) for item in value]
        if any(map(is_hidden, items)):
            return NOT_PLAIN
        if isinstance(value, deque):
            return {"__deque__": items, "maxlen": value.maxlen}
        return {"__tuple__": items} if kind is tuple else items
    if kind is dict and isinstance(value, dict):
        if not all(type(key) is str and not key.startswith("__") for key in value):
            return NOT_PLAIN
        items_of = {key: plain(item) for key, item in value.items()}
        return NOT_PLAIN if any(map(is_hidden, items_of.values())) else items_of
    return NOT_PLAIN


def from_plain(value: object, current: object) -> Any:  # Any: the inverse of ``plain``, of whatever type was saved
    """Invert ``plain``; a saved generator state is loaded into ``current`` if that is a generator."""
    if isinstance(value, dict):
        if GENERATOR in value:
            generator = current if isinstance(current, np.random.Generator) else np.random.default_rng()
            generator.bit_generator.state = value[GENERATOR]
            return generator
        if ARRAY in value:
            return np.frombuffer(bytes(value[ARRAY]), value["dtype"]).reshape(value["shape"]).copy()
        if "__numpy_scalar__" in value:
            return from_plain(value["__numpy_scalar__"], None)[()]
        if "__tuple__" in value:
            return tuple(from_plain(item, None) for item in value["__tuple__"])
        if "__deque__" in value:
            return deque((from_plain(item, None) for item in value["__deque__"]), value["maxlen"])
        return {key: from_plain(item, None) for key, item in value.items()}
    if isinstance(value, list):
        return [from_plain(item, None) for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _stateless(value: Any) -> bool:
    """Whether ``value`` is known to hold no state of the task: a space, a function, a pygame window."""
    return isinstance(value, STATELESS) or type(value).__module__.partition(".")[0] == "pygame"
