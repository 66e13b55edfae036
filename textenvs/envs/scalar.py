"""The scalar view: one sub-environment of a vector environment as a plain `gymnasium.Env`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textenvs.envs.vector import TokenVectorEnv
from textenvs.envs.wrapper import TokenVectorWrapper


class TokenEnv(gym.Env[NDArray[np.int64], np.int64]):
    """One text that grows by one token a step: what `TokenVectorEnv` and its wrappers do, for agents that want one env.

    | Observation | Box(-1, V-1, (L,), int64): prompt and tokens so far, right-padded with PAD = -1               |
    | Action      | Discrete(V): the next token id                                                               |
    | Reward      | of the vector environment with its wrappers                                                  |
    | Termination | as there: the end-of-text token, or the budget                                               |
    | Truncation  | as there: never, unless budget="truncate"                                                    |
    | Info        | stop_reason in {"", "eos", "length"}; kl, nats, of the action; score and score_std once the  |
    |             | text is ended                                                                                |

    Args:
        envs: a `TokenVectorEnv` of one sub-environment with autoreset DISABLED, wrapped or not. It stays reachable as
            ``env.unwrapped.envs`` (log-probs are handed over there).

    Raises:
        ValueError: more sub-environments than one, or another autoreset mode.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own form

    def __init__(self, envs: TokenVectorEnv | TokenVectorWrapper) -> None:
        if envs.num_envs != 1 or envs.metadata["autoreset_mode"] is not AutoresetMode.DISABLED:
            raise ValueError(
                f"expected one sub-environment and autoreset DISABLED, received {envs.num_envs} and "
                f"{envs.metadata['autoreset_mode']}"
            )
        self.envs = envs
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """A new episode; `seed` as in `TokenVectorEnv.reset`. There are no options."""
        observations, infos = self.envs.reset(seed=seed)
        self._np_random = self.envs.np_random  # one generator, the vector environment's own
        self._np_random_seed = self.envs.np_random_seed
        return observations[0], _first(infos)

    def step(self, action: Any) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        """Appends the token id `action`."""
        observations, rewards, terminated, truncated, infos = self.envs.step(np.asarray([action]))
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def close(self) -> None:
        """Closes the vector environment."""
        self.envs.close()


def _first(infos: dict[str, Any]) -> dict[str, Any]:
    """The info of sub-environment 0, of plain Python types."""
    return {key: value[0].item() for key, value in infos.items() if not key.startswith("_") and infos[f"_{key}"][0]}
