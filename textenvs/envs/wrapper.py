"""Base of the token environments' wrappers: passes step path and batch path through and adds masked info entries."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import ArrayLike, NDArray

from textenvs.envs.base import TokenVectorBase
from textenvs.tokens.rows import Columns, Ids, Mask, TokenRows

Wrapper = TypeVar("Wrapper", bound="TokenVectorWrapper")


def found_in(envs: VectorEnv[Any, Any, Any], kind: type[Wrapper]) -> Wrapper | None:
    """The wrapper of ``kind`` among those of ``envs``; None if there is none."""
    while isinstance(envs, TokenVectorWrapper):
        if isinstance(envs, kind):
            return envs
        envs = envs.env
    return None


class TokenVectorWrapper(VectorWrapper[Any, Any, Any, Any, Any]):
    """A wrapper of a `TokenVectorEnv` or of its wrappers that passes the batch path through; it changes nothing itself.

    Gymnasium's own wrappers go outside of all of these: `play` would bypass them.

    Raises:
        ValueError: another environment, or a wrapper of the same class inside.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(envs, TokenVectorBase | TokenVectorWrapper):
            raise ValueError(
                f"{type(self).__name__}: expected a TokenVectorEnv or one of textenvs' wrappers, received {envs}; put "
                "other wrappers outside of it"
            )
        super().__init__(envs)
        self._inner: TokenVectorBase | TokenVectorWrapper = envs
        inner: Any = envs
        while isinstance(inner, TokenVectorWrapper):
            if type(inner) is type(self):
                raise ValueError(f"{type(self).__name__}: expected at most one, received a second, which counts twice")
            inner = inner.env

    @property
    def base(self) -> TokenVectorBase:
        """The environment under all wrappers."""
        base = self.unwrapped
        assert isinstance(base, TokenVectorBase)
        return base

    def hand_logprobs(self, logprobs: ArrayLike) -> None:
        """See `TokenVectorEnv.hand_logprobs`."""
        self._inner.hand_logprobs(logprobs)

    def draw_prompts(self, *, seed: int | None = None) -> Ids:
        """See `TokenVectorEnv.draw_prompts`."""
        return self._inner.draw_prompts(seed=seed)

    def play(
        self, prompts: Ids, completions: Ids, logprobs: ArrayLike | None = None, *, columns: Columns = ()
    ) -> TokenRows:
        """See `TokenVectorEnv.play`; the rewards include what this wrapper adds."""
        return self._inner.play(prompts, completions, logprobs, columns=columns)

    def state_dict(self) -> dict[str, Any]:
        """See `TokenVectorEnv.state_dict`; includes this wrapper's state."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TokenVectorEnv.load_state_dict`."""
        self._inner.load_state_dict(state)

    def _add_entry(self, infos: dict[str, Any], key: str, values: NDArray[Any], mask: Mask) -> None:
        """Add ``values [num_envs]`` about the last action with their ``mask``; of ended episodes to final_info, too."""
        infos[key], infos[f"_{key}"] = np.where(mask, values, values.dtype.type(0)), mask.copy()
        if self.base.autoreset_mode is AutoresetMode.SAME_STEP and "final_info" in infos:
            final = mask & infos["_final_info"]
            infos["final_info"][key] = np.where(final, values, values.dtype.type(0))
            infos["final_info"][f"_{key}"] = final
