"""What ``learn`` calls after every update: functions, Stable-Baselines3's callbacks, and the progress bar.

Stable-Baselines3 calls ``on_step`` after every vector step. An agent here collects a whole rollout before anything can
look at it, so its callbacks are called at the end of an update, once for each vector step of the rollout: ``n_calls``,
``num_timesteps`` and frequencies such as ``eval_freq`` count as they do there, and see the weights after the update.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agents.runs.progress import ProgressBar, headline

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

    from agents.agent import Agent

Callback = Callable[[Any], "bool | None"]
"""Called with the agent after every update; returning False ends ``learn``."""


class _Records:
    """The part of Stable-Baselines3's logger that its callbacks use, writing to the agent's own metrics."""

    def __init__(self, agent: Agent) -> None:
        self._agent, self._found = agent, dict[str, float]()

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        """Keep a number under ``key`` until the next ``dump``."""
        if isinstance(value, int | float) or hasattr(value, "__float__"):
            self._found[key] = float(value)

    def dump(self, step: int = 0) -> None:
        """Write what was recorded."""
        self._agent.logger.write(self._found, step)
        self._found = {}


class _Model:
    """An agent as Stable-Baselines3's callbacks see it."""

    def __init__(self, agent: Agent) -> None:
        self._agent, self.logger = agent, _Records(agent)

    def get_vec_normalize_env(self) -> None:
        """None: statistics are the agent's own, not a wrapper's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


class _Locals(dict[str, Any]):
    """What ``locals`` has in a callback; Stable-Baselines3 also has the newest step's arrays there."""

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"locals[{key!r}]: callbacks are called once a rollout is over; read self.model.metrics")


class SB3Callback:
    """Drive a callback of Stable-Baselines3 from ``learn``."""

    def __init__(self, callback: BaseCallback, agent: Agent) -> None:
        self.callback = callback
        self._steps = agent.steps
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Training and eval env are not of the same type")  # ours are Gymnasium's
            callback.init_callback(_Model(agent))  # type: ignore[arg-type]
        callback.on_training_start(_Locals(self=agent, total_timesteps=agent.span[1]), {})
        callback.on_rollout_start()

    def __call__(self, agent: Agent) -> bool:
        """One update has ended; False if the callback wants training to end."""
        width = 1 if agent.env is None else int(agent.env.num_envs)
        calls, self._steps = max(1, (agent.steps - self._steps) // width), agent.steps
        self.callback.on_rollout_end()
        for _ in range(calls):
            if not self.callback.on_step():
                return False
        self.callback.on_rollout_start()
        return True

    def close(self) -> None:
        """Training has ended."""
        self.callback.on_training_end()


@contextmanager
def called(callback: Any, agent: Agent) -> Iterator[Callback]:
    """One function for whatever ``learn(callback=...)`` was given: None, a function, an SB3 callback, or a list of
    them; ValueError for anything else."""
    given = [] if callback is None else list(callback) if isinstance(callback, Sequence) else [callback]
    wrong = [one for one in given if not (callable(one) or hasattr(one, "init_callback"))]
    if wrong:
        raise ValueError(f"callback: expected a function, an SB3 callback or a list of them, received {wrong[0]!r}")
    calls = [SB3Callback(one, agent) if hasattr(one, "init_callback") else one for one in given]

    def after_update(agent: Agent) -> bool:
        # Every callback sees every update, also one that another callback makes the last; numpy's False counts, too.
        answers = [call(agent) for call in calls]
        return all(answer is None or bool(answer) for answer in answers)

    try:
        yield after_update
    finally:
        for call in calls:
            if isinstance(call, SB3Callback):
                call.close()


@contextmanager
def progress_bar(agent: Agent, unit: str) -> Iterator[Callback]:
    """Show how far ``learn`` is, and the newest return or score."""
    start, end = agent.span
    with ProgressBar(end - start, unit, done=agent.steps - start) as bar:
        yield lambda agent: bar.show(min(agent.steps, end) - start, headline(agent.metrics))
