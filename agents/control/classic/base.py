"""Classic control, many environments in one array: autoreset, time limit, seeds and state, which the tasks share.

The tasks are in the files beside this one; `agents.control.environments.make_vector` picks a form for an id.
Everything an agent sees equals Gymnasium's scalar environment: sub-environment ``i`` after ``reset(seed=s)`` is
``gym.make(id)`` after ``reset(seed=s + i)``, in its first and in every later episode. Two facts make that so:

* each sub-environment owns a generator, as in `gymnasium.vector.SyncVectorEnv`, so that the order in which episodes end
  changes nothing (Gymnasium's own vector CartPole draws from one generator, and equals no scalar environment);
* arithmetic keeps the originals' order and types, their casts to float32 and their ``**`` included.

The equality is bit for bit where numpy computes sin, cos and pow of one number and of an array alike; on CPUs for which
numpy carries kernels of its own (AVX-512) a single step agrees to about 1e-15, and a chaotic task then drifts apart.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

SAVED = {"state": np.float64, "steps": np.int64, "ended": np.bool_, "observations": np.float32}
"""The arrays of a saved state."""


class ClassicVectorEnv(VectorEnv):
    """The base of the classic-control tasks: one array of states and, per sub-environment, a generator and a clock.

    | Observation | the scalar original's, batched; float32, a new array each step |
    | Action      | the scalar original's, batched; checked at each step |
    | Reward      | the scalar original's, float64 (0 on a ``NEXT_STEP`` reset row, whose action is ignored) |
    | Termination | the scalar original's |
    | Truncation  | ``max_episode_steps`` steps were taken, also if the last one terminated (as in `TimeLimit`) |
    | Info        | ``SAME_STEP``, at an end: ``final_obs``, ``final_info`` and their masks, as in `SyncVectorEnv` |

    ``reset(seed=s)`` seeds sub-environment ``i`` with ``s + i``; a list seeds each; ``None`` lets generators run on.
    ``options`` are the scalar original's and serve that reset alone (later automatic ones draw by default bounds);
    ``options["reset_mask"]``, bool ``[num_envs]``, resets a part, in every mode.

    Args:
        num_envs: sub-environments, at least 1.
        autoreset_mode: any of Gymnasium's three. In ``DISABLED``, stepping a sub-environment that ended raises.
        max_episode_steps: the time limit in steps; None for none.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)
    observation_space: gym.spaces.Box
    state_size: int
    spaces: tuple[gym.spaces.Box, gym.Space[Any]]
    """of one observation and one action; copied, because a space owns a generator"""
    start: tuple[float, float]
    """default bounds of what a start draws uniformly"""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"expected num_envs of at least 1, received {num_envs}")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, or None (no limit); received {max_episode_steps}")
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.max_episode_steps = max_episode_steps
        self.single_observation_space, self.single_action_space = deepcopy(self.spaces)
        self.observation_space = batch_space(self.single_observation_space, num_envs)  # type: ignore[assignment]
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._num_actions = np.uint64(getattr(self.single_action_space, "n", 0))
        self._limit = np.iinfo(np.int64).max if max_episode_steps is None else max_episode_steps
        self._state = np.zeros((self.state_size, num_envs))
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._observations = np.zeros(self.observation_space.shape, dtype=np.float32)
        self._generators: list[np.random.Generator] | None = None
        self._seeds: list[int | None] = [None] * num_envs

    def _draw(self, generator: np.random.Generator, options: dict[str, Any] | None) -> np.ndarray:
        """A starting state ``[state_size]``, drawn as the scalar original draws it."""
        return generator.uniform(*maybe_parse_reset_bounds(options, *self.start), size=self.state_size)

    @abstractmethod
    def _advance(self, state: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """From states ``[state_size, N]`` and checked actions to new states, rewards ``[N]`` and terminated ``[N]``."""

    def _observe(self, state: np.ndarray) -> np.ndarray:
        """The observations ``[N, observation_size]``, any float type, of states ``[state_size, N]``."""
        return state.T

    def reset(  # a list of seeds, as SyncVectorEnv takes
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes; see the class for seeds and options.

        Raises:
            ValueError: if the seeds are not ``num_envs``, or the mask has the wrong shape or selects nothing.
            TypeError: if the mask is not a boolean numpy array.
            gymnasium.error.ResetNeeded: if the first reset leaves a sub-environment out.
        """
        rows, options = self._rows_to_reset(options)
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset takes one seed or {self.num_envs}, one per sub-environment; received {len(seeds)}")
        if self._generators is None:
            if len(rows) < self.num_envs:
                raise ResetNeeded(f"the first reset must start all {self.num_envs} sub-environments, not {rows} alone")
            self._generators, self._seeds = map(list, zip(*map(seeding.np_random, seeds), strict=True))
        else:
            for row in rows:
                if seeds[row] is not None:
                    self._generators[row], self._seeds[row] = seeding.np_random(seeds[row])
        self._restart(rows, options)
        return self._observations.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step in every sub-environment.

        Raises:
            AssertionError: if the actions do not fit the action space (as Gymnasium's vector CartPole), or, in
                ``DISABLED``, a sub-environment has ended and was not reset.
            gymnasium.error.ResetNeeded: before the first reset.
        """
        actions = self._checked(actions)
        if self._generators is None:
            raise ResetNeeded("Cannot step a vector environment before its first reset")
        waiting = self._ended.nonzero()[0]
        assert not (len(waiting) and self.autoreset_mode is AutoresetMode.DISABLED), (
            f"sub-environments {waiting} have ended; reset them with options={{'reset_mask': ...}}"
        )
        self._state, rewards, terminated = self._advance(self._state, actions)
        self._observations[:] = self._observe(self._state)
        self._steps += 1
        truncated = self._steps >= self._limit
        if len(waiting):  # NEXT_STEP: this row only restarts; what was just computed for it never happened
            self._restart(waiting)
            rewards[waiting], terminated[waiting], truncated[waiting] = 0.0, False, False
        self._ended = terminated | truncated
        info: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and np.count_nonzero(self._ended):
            info = self._final_info()
            self._restart(self._ended.nonzero()[0])
        return self._observations.copy(), rewards, terminated, truncated, info

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generators, one per sub-environment, as `SyncVectorEnv` has it; made at the first reset."""
        return tuple(self._generators or ())

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seed of each sub-environment's generator."""
        return tuple(self._seeds)

    def state_dict(self) -> dict[str, Any]:
        """The full state: arrays, and the generators' states as plain (JSON-able) dicts."""
        generators = None if self._generators is None else [g.bit_generator.state for g in self._generators]
        arrays = {name: getattr(self, f"_{name}").copy() for name in SAVED}
        return {**arrays, "seeds": list(self._seeds), "generators": generators}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; lists are accepted in place of arrays.

        Raises:
            ValueError: if it belongs to another task or another number of sub-environments.
        """
        shape = np.shape(state["state"])
        if shape != self._state.shape:
            raise ValueError(f"this environment's state has shape {self._state.shape}, the one to load {shape}")
        for name, dtype in SAVED.items():
            setattr(self, f"_{name}", np.array(state[name], dtype=dtype))
        self._seeds = list(state["seeds"])
        if state["generators"] is None:
            self._generators = None
            return
        self._generators = [seeding.np_random(0)[0] for _ in range(self.num_envs)]
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved

    def _checked(self, actions: Any) -> np.ndarray:
        """The actions, if they fit the space; continuous ones may leave the bounds, as the originals clip them."""
        actions = np.asarray(actions)
        if isinstance(self.single_action_space, gym.spaces.Box):
            fits = actions.shape == self.action_space.shape and np.can_cast(actions.dtype, np.float32)
            fits = fits and not np.isnan(actions).any()
        else:
            fits = actions.dtype.kind in "iu" and actions.shape == self.action_space.shape
            # a negative number becomes a huge one; Discrete.contains says the same and takes five times as long
            fits = fits and not np.count_nonzero(actions.astype(np.uint64) >= self._num_actions)
        assert fits, f"{actions!r} ({actions.dtype}, shape {actions.shape}) is not in {self.action_space}"
        return actions

    def _rows_to_reset(self, options: dict[str, Any] | None) -> tuple[np.ndarray, dict[str, Any] | None]:
        """The rows that ``options`` ask to reset, and the options without the mask."""
        if options is None or "reset_mask" not in options:
            return np.arange(self.num_envs), options
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"options['reset_mask'] must be a boolean numpy array, received {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"options['reset_mask']: expected shape ({self.num_envs},) with a True, received {mask!r}")
        return mask.nonzero()[0], {key: value for key, value in options.items() if key != "reset_mask"} or None

    def _restart(self, rows: np.ndarray, options: dict[str, Any] | None = None) -> None:
        assert self._generators is not None
        starts = np.stack([self._draw(self._generators[row], options) for row in rows], axis=1)
        self._state[:, rows] = starts
        self._steps[rows] = 0
        self._ended[rows] = False
        self._observations[rows] = self._observe(starts)

    def _final_info(self) -> dict[str, Any]:
        final = np.full(self.num_envs, None, dtype=object)
        for row in self._ended.nonzero()[0]:
            final[row] = self._observations[row].copy()
        masks = {name: self._ended.copy() for name in ("_final_obs", "_final_info")}
        return {"final_obs": final, "final_info": {}, **masks}
