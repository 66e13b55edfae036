"""A vector environment with a known autoreset mode, from an id, an environment or a vector environment."""

from __future__ import annotations

import importlib
import inspect
import traceback
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

EnvLike = str | gym.Env | VectorEnv
OWN_CODE = "the environment's own code failed, or what it returned:"
"""Begins the note on an exception that is not ours."""
OURS = tuple(Path(__file__).parents[2] / name for name in ("agents", "textenvs", "reward_models"))
NATIVE = {
    "Acrobot-v1": "agents.control.classic.acrobot:AcrobotVectorEnv",
    "CartPole-v0": "agents.control.classic.cart_pole:CartPoleVectorEnv",
    "CartPole-v1": "agents.control.classic.cart_pole:CartPoleVectorEnv",
    "MountainCar-v0": "agents.control.classic.mountain_car:MountainCarVectorEnv",
    "MountainCarContinuous-v0": "agents.control.classic.mountain_car:MountainCarContinuousVectorEnv",
    "Pendulum-v1": "agents.control.classic.pendulum:PendulumVectorEnv",
}
"""Ids with a vectorized environment here, and its entry point."""


def make_vector(env: EnvLike, num_envs: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any) -> VectorEnv:
    """A vector environment for an id, an environment or a vector environment.

    An id gets its fastest form that honors ``mode``: the one here for classic control; its own vector form, if that
    takes an ``autoreset_mode``; else, or for a ``render_mode``, scalar ones in a `gymnasium.vector.SyncVectorEnv`. An
    ``Env`` becomes a vector of one that resets in the same step; a ``VectorEnv`` is taken as it is.

    Args:
        env: ``"CartPole-v1"``, ``"my_module:MyEnv-v0"``, an ``Env`` or a ``VectorEnv``.
        num_envs: how many copies of an id, >= 1.
        mode: how an id's ended episodes are reset. In the same step, no step is wasted.
        kwargs: for the environment's constructor, where ``env`` is an id: ``g=9.81`` or ``max_episode_steps=100``.

    Raises:
        ValueError: for anything else, for a vector environment that does not say how it resets, ``num_envs`` < 1, or
            an unknown mode.
        gymnasium.error.Error: if the id is not registered (the message names close ones).
        ModuleNotFoundError: if an id's module cannot be found.
    """
    if isinstance(env, VectorEnv):
        autoreset_mode(env)
        return env
    if isinstance(env, gym.Env):
        _check_env(env)
        return SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.SAME_STEP)
    if not isinstance(env, str):
        raise ValueError(f"env: expected an id, Env or VectorEnv (gymnasium.make_vec), received {type(env).__name__}")
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, received {num_envs}")
    mode = AutoresetMode(mode)
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        envs = _made(env, gym.spec(name), num_envs, mode, kwargs)
    except Exception as fault:
        unknown = isinstance(fault, ModuleNotFoundError) and f"{module}.".startswith(f"{fault.name}.")
        if not unknown and not isinstance(fault, gym.error.Error):
            _add_note(fault, f"{env}, while it was made")
        raise
    if isinstance(envs.unwrapped, SyncVectorEnv):
        _check_env(envs.unwrapped.envs[0])
    return envs


def _made(env: str, spec: EnvSpec, num_envs: int, mode: AutoresetMode, kwargs: dict[str, Any]) -> VectorEnv:
    name = spec.id
    if name in NATIVE and kwargs.get("render_mode") is None:
        kwargs.pop("render_mode", None)
        limit = kwargs.pop("max_episode_steps", spec.max_episode_steps)
        native: Any = load_env_creator(NATIVE[name])
        envs: VectorEnv = native(num_envs, autoreset_mode=mode, max_episode_steps=limit, **kwargs)
        envs.spec = deepcopy(spec)
        return envs
    creator: Any = spec.vector_entry_point
    creator = load_env_creator(creator) if isinstance(creator, str) else creator
    if creator is not None and "autoreset_mode" in inspect.signature(creator).parameters:
        return gym.make_vec(env, num_envs=num_envs, autoreset_mode=mode, **kwargs)
    return gym.make_vec(
        env, num_envs=num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **kwargs
    )


def _check_env(env: gym.Env) -> None:
    """Raise ValueError unless ``env`` has its spaces and a ``reset`` that can be seeded."""
    name = type(env.unwrapped).__name__
    for each in ("observation_space", "action_space"):
        space = getattr(env, each, None)
        if not isinstance(space, gym.Space):
            raise ValueError(f"{name}.{each}: expected a gymnasium space, received {space!r}")
    parameters = inspect.signature(env.unwrapped.reset).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds and not {"seed", "options"} <= set(parameters):
        raise ValueError(f"{name}.reset: expected (*, seed=None, options=None), received ({', '.join(parameters)})")


def reset(envs: VectorEnv, seed: int | None) -> Any:
    """The observations of the first reset."""
    try:
        return envs.reset(seed=seed)[0]
    except Exception as fault:
        add_place(fault, envs, "reset")
        raise


def add_place(fault: Exception, envs: VectorEnv, place: str) -> None:
    """Add to an exception that left ``envs`` whose code that is and where in the run it was: a line for
    ``agents.runs.cli``, which puts it above the traceback."""
    inner = envs.unwrapped
    name = type(inner).__name__
    if isinstance(inner, SyncVectorEnv):
        name = type(inner.envs[0].unwrapped).__name__
        frames = [frame.f_locals for frame, _ in traceback.walk_tb(fault.__traceback__)]
        name += next((f", environment {each['i']}" for each in frames if each.get("self") is inner and "i" in each), "")
    _add_note(fault, f"{name}, {place}")


def _add_note(fault: Exception, place: str) -> None:
    last = Path(traceback.extract_tb(fault.__traceback__)[-1].filename)
    if not any(last.is_relative_to(each) for each in OURS):  # our own messages need no traceback
        vars(fault).setdefault("__notes__", []).append(f"{OWN_CODE} {place}")  # as add_note of Python 3.11


def autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    """How ``envs`` resets ended episodes; ValueError if its metadata does not say."""
    mode = envs.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(f"{envs} must declare metadata['autoreset_mode'] as a gymnasium AutoresetMode, found {mode!r}")
    return mode
