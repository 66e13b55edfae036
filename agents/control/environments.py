"""A vector environment with a known autoreset mode, from an id, an environment or a vector environment."""

from __future__ import annotations

import importlib
import inspect
from copy import deepcopy
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

EnvLike = str | gym.Env | VectorEnv
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
        return SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.SAME_STEP)
    if not isinstance(env, str):
        raise ValueError(f"env must be an id, a gymnasium Env or VectorEnv, received {type(env).__name__}")
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, received {num_envs}")
    mode = AutoresetMode(mode)
    module, _, name = env.rpartition(":")
    if module:
        importlib.import_module(module)
    spec = gym.spec(name)
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


def autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    """How ``envs`` resets ended episodes.

    Raises:
        ValueError: if its metadata does not say.
    """
    mode = envs.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(f"{envs} must declare metadata['autoreset_mode'] as a gymnasium AutoresetMode, found {mode!r}")
    return mode
