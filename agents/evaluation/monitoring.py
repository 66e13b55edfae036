"""A callback that watches a training for reward hacking: alarms, ``monitors.json``, and where to stop.

    agent.learn(100_000, callback=Monitors(stop_on="any"))

What each monitor measures is in `agents.evaluation.monitors`. Start and counts live in the agent, so that its
checkpoints hold them and a resumed run goes on bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.evaluation.monitors import MONITORS, Written, measure, written
from reward_models.aside import write_json
from textenvs.envs.wrapper import found_in
from textenvs.tokens.rows import PAD, TokenRows
from textenvs.wrappers.preference import PreferenceReward

if TYPE_CHECKING:
    from agents.agent import Agent

FILE = "monitors.json"
LEAST, MOST = 256, 1024
"""Texts that make the start: those of the first batch; of the first batches until there are so many; no more."""
METRICS = {
    "monitor/NAME": "value of that monitor of reward hacking (recipes/monitors.md), mean of the newest two batches, by "
    "its threshold: above 1 is an alarm",
}


def monitor_names(given: str | Iterable[str]) -> frozenset[str]:
    """The monitors that ``given`` names: "any" is all of them, "length,kl" these two; ValueError, with the nearest, for
    an unknown name."""
    names = [each.strip() for each in (given.split(",") if isinstance(given, str) else given)]
    for name in names:
        if name not in MONITORS and name != "any":
            near = get_close_matches(name, [*MONITORS, "any"], n=1, cutoff=0.0)[0]
            raise ValueError(
                f"stop_on: expected any, or some of {', '.join(MONITORS)}, received {name!r}: did you mean {near}?"
            )
    return frozenset(MONITORS) if "any" in names else frozenset(names)


class Monitors:
    """Called with a `TextAgent` after every update; answers False, which ends ``learn``, at an alarm of ``stop_on``.

    The first texts that it meets are the start, so give it to the first ``learn``. Values go to the agent's logger as
    ``monitor/NAME``.

    Args:
        stop_on: names, or "any"; see `monitor_names`.
        judge: an independent judge of finished rows, ``rows -> [N]``; None: there is none.
        path: of a file that is replaced after every update: a list of name, what, value, threshold and fired_at, the
            number of texts at the alarm or null. None: none.
        warn: receives a line at each alarm.

    Raises:
        ValueError: for an unknown name; when it is called, for an agent that does not write texts.
    """

    def __init__(
        self,
        stop_on: str | Iterable[str] = (),
        *,
        judge: Callable[[TokenRows], NDArray[Any]] | None = None,
        path: str | Path | None = None,
        warn: Callable[[str], object] = warnings.warn,
    ) -> None:
        self.stop_on = monitor_names(stop_on)
        self.judge, self.path, self.warn = judge, None if path is None else Path(path), warn
        self.stopped_by: list[str] = []
        """Monitors of ``stop_on`` whose alarm ended the training; empty as long as none did."""
        self.calm = True
        """Whether no monitor of ``stop_on`` is at more than half of its threshold now: what is saved is good."""

    def __call__(self, agent: Agent) -> bool:
        """One update has ended; False if it is to be the last."""
        collector: Any = agent.collector
        rows = getattr(collector, "last", None)
        if not isinstance(rows, TokenRows):
            raise ValueError(f"Monitors: expected an agent that writes texts, received a {type(agent).__name__}")
        owner: Any = agent
        state: dict[str, Any] = owner.monitors or {"start": None, "newest": {}, "fired": {}}
        start, fired = state["start"], dict(state["fired"])
        now = self._written(rows, found_in(collector.envs, PreferenceReward))
        if start is None or len(start["scores"]) < LEAST:
            start = _joined(start, now)
        found = measure(Written(**start), now, rows)
        newest = {name: value for name, (value, _) in found.items()}
        values = {name: (state["newest"].get(name, 0.0) + value) / 2.0 for name, value in newest.items()}
        agent.logger.write(
            {f"monitor/{name}": each / MONITORS[name].threshold for name, each in values.items()}, agent.steps
        )
        for name, value in values.items():
            if value > MONITORS[name].threshold and name not in fired:
                fired[name] = agent.steps
                self._alarm(name, value, _named(found[name][1], collector.base.tokenizer), agent.steps)
        owner.monitors = {"start": start, "newest": newest, "fired": fired}
        self.calm = all(newest[name] <= MONITORS[name].threshold / 2.0 for name in self.stop_on & newest.keys())
        if self.path is not None:
            lines = [
                {"name": name, **MONITORS[name]._asdict(), "value": value, "fired_at": fired.get(name)}
                for name, value in values.items()
            ]
            write_json(self.path, lines)
        return not self.stopped_by

    def _written(self, rows: TokenRows, reward: PreferenceReward | None) -> Written:
        members, held_out = rows.member_scores or {}, () if reward is None else reward.held_out
        judged = {} if self.judge is None else {"judge": self.judge(rows)}
        if held_out:
            judged["member"] = np.mean([np.nan_to_num(members[name]) for name in held_out], axis=0)
        is_ensemble = reward is not None and reward.is_ensemble
        return written(rows, judged, spread=rows.score_std if is_ensemble else None)

    def _alarm(self, name: str, value: float, about: str, texts: int) -> None:
        if name in self.stop_on:
            self.stopped_by.append(name)
        what, threshold = MONITORS[name]
        self.warn(f"monitor {name} after {texts} texts: {value:.3g}{about}, expected {threshold:g} at most; see {what}")


def _named(about: str, tokenizer: Any) -> str:
    """What `shortcut` found, for people."""
    if about.isdigit():
        about = f"token {about}" if tokenizer is None else repr(tokenizer.decode([int(about)]))
    return about and f" by {about}"


def _joined(before: dict[str, Any] | None, now: Written) -> dict[str, Any]:
    """The start as plain arrays, `MOST` texts at most, with the texts of one more batch."""
    parts = [vars(now)] if before is None else [before, vars(now)]
    width = max(part["tokens"].shape[1] for part in parts)
    tokens = [
        np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=PAD) for each in (p["tokens"] for p in parts)
    ]
    names, begin = parts[0]["figures"], 0 if before is None else int(before["groups"].max()) + 1
    groups = [*(part["groups"] for part in parts[:-1]), now.groups + begin]  # each batch has prompts of its own
    return {
        "tokens": np.concatenate(tokens)[:MOST],
        "scores": np.concatenate([part["scores"] for part in parts])[:MOST],
        "groups": np.concatenate(groups)[:MOST],
        "figures": {name: np.concatenate([part["figures"][name] for part in parts])[:MOST] for name in names},
    }
