"""Collects rollouts from any Gymnasium vector environment, one step of all environments at a time.

The three autoreset modes give the same training data:

    SAME_STEP   the next observation already belongs to a new episode; the last one is in ``info["final_obs"]``
    NEXT_STEP   the last observation comes back as usual, and one step later a reset pretends to be a step: masked
    DISABLED    the last observation comes back as usual; the collector resets those environments itself

How a policy acts meanwhile is in ``agents.control.acting``.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from agents.control.acting import Actor, ActorCritic
from agents.control.env_state import snapshot as env_state
from agents.control.environments import add_place, autoreset_mode, reset
from agents.control.episodes import EpisodeStatistics
from agents.control.normalize import ObservationNormalizer, RewardScaler
from agents.control.spaces import ActionDecoder, ObservationEncoder
from agents.rollout import Rollout

FRESH = (
    "Training goes on from there with fresh resets. To resume in mid-episode, implement state_dict() and "
    "load_state_dict() in the environment, or run scalar environments in a SyncVectorEnv, where they are replayed"
)


class StepCollector:
    """Steps every environment ``num_steps`` times per rollout; the next rollout continues where the last one stopped.

    Any autoreset mode will do. The ``generator`` of the policy's randomness is saved by its owner; ``seed`` is for the
    environments' first reset; ``normalizer`` and ``reward_scaler`` (None: neither) change what is learned from, and no
    reported return. ValueError for ``num_steps`` below 1.
    """

    counts = "steps"

    def __init__(
        self,
        envs: VectorEnv,
        num_steps: int,
        *,
        generator: torch.Generator,
        seed: int | None = None,
        device: str | torch.device = "cpu",
        normalizer: ObservationNormalizer | None = None,
        reward_scaler: RewardScaler | None = None,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, received {num_steps}")
        env_state.record(envs)
        self.envs, self.num_steps = envs, num_steps
        self.generator, self.device = generator, torch.device(device)
        self.normalizer, self.reward_scaler = normalizer, reward_scaler
        self.mode = autoreset_mode(envs)
        self.encode = ObservationEncoder(envs.single_observation_space)
        self.decode = ActionDecoder(envs.single_action_space)
        bounds = self.encode.bounds()
        self._bounds: NDArray[np.float32] | None = bounds + [[-1e-4], [1e-4]] * np.maximum(np.abs(bounds), 1.0)
        self.episodes = EpisodeStatistics(envs.num_envs)
        self._seed = seed
        self._observation: NDArray[np.float32] | None = None
        self._resetting = np.zeros(envs.num_envs, np.bool_)
        self.left: dict[str, Any] | None = None
        """State of the environments at the end of the last ``learn``, if nothing was loaded since then."""

    def collect(self, policy: ActorCritic) -> tuple[Rollout, dict[str, float]]:
        """``[B, num_steps]`` steps with ``policy``, and the statistics of the episodes that ended so far.

        After a rollout that was cut short, by an error or by Ctrl-C, the next one begins with fresh resets.
        """
        try:
            return self._collect(policy)
        except BaseException:
            if self._observation is not None:  # the environments have gone on from it
                self.restart()
            raise

    def _collect(self, policy: ActorCritic) -> tuple[Rollout, dict[str, float]]:
        num_steps, num_envs = self.num_steps, self.envs.num_envs
        if self._observation is None:
            self._observation = self.encode(reset(self.envs, self._seed)).copy()
        raw = np.empty((num_steps + 1, num_envs, self.encode.size), np.float32)
        rewards = np.empty((num_steps, num_envs), np.float32)
        terminated, truncated, mask = (np.empty((num_steps, num_envs), np.bool_) for _ in range(3))
        finals: list[tuple[int, int, NDArray[np.float32]]] = []
        actor = Actor(policy, num_steps, num_envs, self.generator, self.device)
        raw[0] = self._observation
        for t in range(num_steps):
            mask[t] = ~self._resetting
            if self.encode.mask_size and self._resetting.any():  # a phantom step's mask may forbid everything
                raw[t][self._resetting, -self.encode.mask_size :] = 1.0
            actions = actor.step(t, raw[t] if self.normalizer is None else self.normalizer(raw[t]))
            try:
                observations, reward, terminated[t], truncated[t], info = self.envs.step(self.decode(actions))
                raw[t + 1] = self.encode(observations)
                rewards[t] = reward
            except Exception as fault:
                self._check_numbers(raw[: t + 1], rewards[:t], mask[: t + 1], finals)
                add_place(fault, self.envs, f"step {t} of {num_steps} of a rollout")
                raise
            ended = (terminated[t] | truncated[t]) & mask[t]
            self.episodes.add(reward, ended, mask[t])
            self._resetting = ended if self.mode is AutoresetMode.NEXT_STEP else self._resetting
            if self.mode is not AutoresetMode.NEXT_STEP and ended.any():
                bootstrapped = np.flatnonzero(truncated[t] & ~terminated[t])
                last = self._finals(raw[t + 1], info, bootstrapped)
                finals += [(t, int(i), x) for i, x in zip(bootstrapped, last, strict=True)]
                if self.mode is AutoresetMode.DISABLED:
                    fresh, _ = self.envs.reset(options={"reset_mask": ended})
                    raw[t + 1][ended] = self.encode(fresh)[ended]
        self._check_numbers(raw, rewards, np.concatenate([mask, ~self._resetting[None]]), finals)
        self._observation = raw[num_steps].copy()
        if self.reward_scaler is not None:
            rewards = self.reward_scaler(rewards, terminated | truncated, mask)
        ended = terminated | truncated
        ended[-1] = True
        rollout = self._judge(
            policy, actor, raw, finals, rewards=rewards, terminated=terminated, ended=ended, mask=mask
        )
        if self.normalizer is not None:
            self.normalizer.update(raw[:num_steps][mask])
        return rollout, self.episodes.metrics()

    def _check_numbers(
        self, raw: NDArray[np.float32], rewards: NDArray[np.float32], mask: NDArray[np.bool_], finals: list[Any]
    ) -> None:
        """Raise ValueError for a number that is not finite; warn once of observations outside their space.

        ``raw`` is ``[T + 1, B, size]``, ``rewards`` ``[T, B]``; ``mask [T + 1, B]`` is True on observations that count,
        and on steps that were really taken; ``finals`` are step, environment and last observation of episodes.
        """
        for t, row, column in np.argwhere(~np.isfinite(raw) & mask[..., None])[:1]:
            what = f"finite {self.encode.describe(column)}, received {raw[t, row, column]}"
            raise ValueError(f"environment {row}, after {t} steps of a rollout: expected a {what}")
        for t, row, last in finals:
            if not np.isfinite(last).all():
                what = f"finite final_obs, received {last}"
                raise ValueError(f"environment {row}, step {t} of a rollout: expected a {what}")
        for t, row in np.argwhere(~np.isfinite(rewards) & mask[: len(rewards)])[:1]:
            what = f"finite reward, received {rewards[t, row]} or None"
            raise ValueError(f"environment {row}, step {t} of a rollout: expected a {what}")
        if self._bounds is not None:
            odd = ((raw < self._bounds[0]) | (raw > self._bounds[1])) & mask[..., None]
            for t, row, column in np.argwhere(odd)[:1]:
                low, high = self.encode.bounds()[:, column]
                what = f"is {raw[t, row, column]:g}, outside its space's [{low:g}, {high:g}]"
                place = f"environment {row}, after {t} steps of a rollout: {self.encode.describe(column)}"
                warnings.warn(f"{place} {what}", stacklevel=2)
                self._bounds = None

    def _finals(self, observations: NDArray[np.float32], info: dict[str, Any], index: Any) -> list[NDArray[np.float32]]:
        """The last observations of the episodes that hit their time limit in environments ``index``."""
        if self.mode is AutoresetMode.DISABLED:
            return list(observations[index].copy())
        if len(index) == 0:
            return []
        if "final_obs" not in info:
            raise ValueError(f"info: expected final_obs, as {self.mode} has it at an end, received {list(info)}")
        final = info["final_obs"]
        if isinstance(final, np.ndarray) and final.dtype == object:
            return [self.encode.single(final[i])[0] for i in index]
        return list(self.encode(final)[index])

    @torch.no_grad()
    def _judge(
        self,
        policy: Any,
        actor: Actor,
        raw: NDArray[np.float32],
        finals: list[tuple[int, int, NDArray[np.float32]]],
        **per_step: NDArray[Any],
    ) -> Rollout:
        """One batched pass over all observations: values, values after each step, log-probabilities."""
        last = np.stack([x for _, _, x in finals]) if finals else raw[:0, 0]
        beyond = np.concatenate([raw[-1], last])
        seen, beyond = (raw, beyond) if self.normalizer is None else (self.normalizer(raw), self.normalizer(beyond))
        observations = _rows(seen[:-1]).to(self.device)
        actions, logprobs, values = actor.evaluated(observations)
        after = policy.values(torch.from_numpy(beyond).to(self.device)).view(len(beyond))
        num_envs = raw.shape[1]
        next_values = torch.cat([values[:, 1:], after[:num_envs, None]], dim=1)
        if finals:
            steps, rows = torch.tensor([[t, i] for t, i, _ in finals]).T
            next_values[rows, steps] = after[num_envs:]
        rows_of = {name: _rows(array).to(self.device) for name, array in per_step.items()}
        return Rollout(observations, actions, logprobs, values, next_values, **rows_of)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next rollout depends on; the environments as in ``agents.control.env_state.snapshot``."""
        envs = None if self._observation is None else env_state.capture(self.envs)
        lost = [] if envs is None else env_state.unsaved(envs)
        if lost:
            warnings.warn(f"not saved: {'; '.join(lost)}. {FRESH}", stacklevel=2)
        return {
            "observation": None if self._observation is None else self._observation.copy(),
            "resetting": self._resetting.copy(),
            "episodes": self.episodes.state_dict(),
            "normalizer": None if self.normalizer is None else self.normalizer.state_dict(),
            "reward_scaler": None if self.reward_scaler is None else self.reward_scaler.state_dict(),
            "envs": envs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from ``state_dict``; from fresh resets, with a warning, if the environments' state was not saved.

        Raises:
            ValueError: if the number or type of environments differs.
        """
        if len(state["resetting"]) != self.envs.num_envs:
            raise ValueError(
                f"expected the state of {self.envs.num_envs} environments, received {len(state['resetting'])}: to go "
                "on in others, load without env= and call set_env"
            )
        self.left = None
        self.episodes.load_state_dict(state["episodes"])
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])
        if self.reward_scaler is not None:
            self.reward_scaler.load_state_dict(state["reward_scaler"])
        lost = [] if state["envs"] is None else env_state.unsaved(state["envs"])
        if lost:
            warnings.warn(f"the checkpoint lacks {'; '.join(lost)}. {FRESH}", stacklevel=2)
            self._abandon()
            return
        self._resetting = np.array(state["resetting"], np.bool_)
        if state["observation"] is not None:
            self.envs.reset(seed=self._seed)
            env_state.restore(self.envs, state["envs"])
            self._observation = np.array(state["observation"], np.float32)

    def restart(self) -> None:
        """Let the next rollout begin with resets, without a seed, as other episodes are to follow."""
        self._observation, self._seed = None, None
        self._resetting[:] = False
        self._abandon()

    def _abandon(self) -> None:
        """Forget the episodes under way."""
        self.episodes.abandon()
        if self.reward_scaler is not None:
            self.reward_scaler.running[:] = 0.0


def _rows(array: NDArray[Any]) -> Tensor:
    """``[T, B, ...]`` to ``[B, T, ...]`` copied."""
    return torch.from_numpy(np.swapaxes(array, 0, 1).copy())
