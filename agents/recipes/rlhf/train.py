"""The run of ``textenvs train-text``: evaluate, train, evaluate, save; its settings are in `config`."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from agents.engines.protocol import EngineError
from agents.evaluation.curve import FRONTIER, STEP, FrontierFollower, updates_between_points
from agents.evaluation.metrics import compare
from agents.evaluation.monitoring import FILE, Monitors
from agents.evaluation.token_page import PAGE, Snapshot, write_token_page
from agents.evaluation.token_table import token_tables
from agents.lm.loading import resolved, weightless
from agents.lm.memory import PeakMemory, held_bytes
from agents.lm.saving import save_adapter, save_model
from agents.recipes.rlhf.build import TextParts, build_parts
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.rlhf.memory_plan import as_text, planned_bytes
from agents.recipes.rlhf.models import model_path
from agents.reports.page import write_report
from agents.runs import checkpoint
from agents.runs.devices import prepare_device
from agents.runs.distributed import Processes
from agents.runs.lifecycle import TrainingRun, longer, training_run
from agents.runs.progress import headline
from agents.runs.run_dir import read_json
from agents.runs.signals import stop_on_signal
from agents.text.agent import TextAgent
from textenvs.dialogues.sub_environments import DialogueError
from textenvs.wrappers.scorers import RewardError

STATE = "state.json"
SAMPLES = "samples.json"
MODEL = "model"
ADAPTER = "adapter"
SHOWN = 8
"""Texts on the page of tokens: as many as GRPO's group has, so that one can be seen whole."""


def main(config: TrainTextConfig) -> dict[str, Any]:
    """Train; returns the content of ``summary.json``, or nothing for ``plan`` and in processes other than the main one.

    Raises:
        RunDirError, ValueError, OSError, CheckpointError: with a message that says what to do.
        RewardError, EngineError: a reward or an engine failed; the run can be resumed.
        Interrupted: after Ctrl-C or SIGTERM, once checkpoint, model and samples are written.
    """
    if config.plan:
        if os.environ.get("RANK", "0") == "0":
            print(as_text(planned_bytes(config), config.memory))
        return {}
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dtype = resolved(config.dtype, config.device)
    processes = Processes.launched(config.device, dtype, sharded=config.shard != "none")
    prepare_device(config.device, config.dtype)
    num_parameters = sum(each.numel() for each in weightless(model_path(config)).parameters())
    with processes.together():
        if processes.is_main:
            return _lead(config.settled(num_parameters), processes, num_parameters)
        _follow(config.settled(num_parameters), processes)
        return {}


def _lead(config: TrainTextConfig, processes: Processes, num_parameters: int) -> dict[str, Any]:
    """Run in the main process, or the only one."""
    settings = config.identity()
    with training_run(
        config, script="train_text", settings=settings, length="episodes", reads=config.reads, report=write_report
    ) as run:
        if not config.quiet:
            print(f"learning rate {config.learning_rate} for {num_parameters / 1e6:.1f} million parameters", flush=True)
        peak = PeakMemory(config.device)
        parts = build_parts(config, processes, processes.broadcast(run.began))
        print(parts.task.about)
        agent = _agent(config, parts)
        state = run.checkpoint_state()
        trained, resume_at = (_Clock(), None) if state is None else (_resumed(agent, config, run, state), agent.steps)
        # Before the run begins: a reward that cannot be used shows here.
        before = parts.task.assessor.assess(parts.task.models.start)
        agent.logger = run.begin(agent.steps)
        frontier = FrontierFollower(run.path / FRONTIER, before, agent.logger, resume_at=resume_at)
        monitors = _monitors(config, parts, run)
        finished = _Training(agent, config, parts, run, trained, frontier, monitors).learn()
        peak_bytes = peak.bytes()
        weights = None if agent.shards is None else agent.shards.trained()
        save_adapter(parts.policy, run.path / ADAPTER, weights)  # first: merging takes the memory of one more model
        save_model(parts.policy, parts.task.assessor.tokenizer, run.path / MODEL, weights)
        after = parts.task.assessor.assess(parts.policy)
        if finished:
            frontier.add(agent.steps, after)
        processes.all_gather(None)  # until here they took part in passes
        metrics, samples = compare(before, after)
        run.folder.write_json(SAMPLES, {"samples": samples})
        summary = {
            "algorithm": config.algorithm,
            "seed": config.seed,
            "episodes": agent.steps,
            "eval_rows": len(before.samples.prompts),
            "wall_s": trained.seconds,
            "response_tokens_per_s": trained.tokens / max(trained.seconds, 1e-9),
            "peak_memory_bytes": peak_bytes,
            **{f"{name}_bytes": size for name, size in held_bytes(parts.policy, agent.optimizer).items()},
            **metrics,
            **({"stopped_by": ", ".join(monitors.stopped_by)} if monitors.stopped_by else {}),
        }
        return run.finish(summary, finished=finished)


def _resumed(agent: TextAgent, config: TrainTextConfig, run: TrainingRun, state: dict[str, Any]) -> _Clock:
    """Restore the agent, whose run may be longer now; the seconds and tokens so far."""
    shorter = state.get("progress", {}).get("span", (0, config.episodes))[1]
    if shorter < config.episodes and config.beta_start is not None:
        raise ValueError(
            f"episodes: expected {shorter}, since beta_start falls over a share of them, received {config.episodes}: "
            "a run with it cannot be made longer"
        )
    with run.restoring():
        agent.load_state_dict(agent.processes.broadcast(state))
    if shorter < config.episodes:
        print(longer(shorter, config.episodes, "texts", agent.extend(config.episodes)))
    if not (run.path / STATE).exists():  # a kill may come between the first checkpoint and it
        return _Clock()
    clock = read_json(run.path / STATE, "seconds", "tokens")
    return _Clock(float(clock["seconds"]), float(clock["tokens"]))


def _agent(config: TrainTextConfig, parts: TextParts) -> TextAgent:
    reference = parts.task.models.plain
    return TextAgent(config.agent_config(), policy=parts.policy, collector=parts.collector, reference=reference)


def _follow(config: TrainTextConfig, processes: Processes) -> None:
    """Run in every process but the main one: take part in every update, and write nothing."""
    parts = build_parts(config, processes, processes.broadcast(None))
    agent = _agent(config, parts)
    if config.resume:
        agent.load_state_dict(processes.broadcast(None))
        agent.extend(config.episodes)
    with stop_on_signal() as stop:
        _learn(agent, config, lambda agent: not agent.processes.any(stop.is_set()))
    _go_back(agent, None)
    processes.all_gather(None)


@dataclass
class _Clock:
    """Seconds of training and response tokens so far, the resumed part included."""

    seconds: float = 0.0
    tokens: float = 0.0


@dataclass
class _Training:
    """A run in the main process between its two evaluations."""

    agent: TextAgent
    config: TrainTextConfig
    parts: TextParts
    run: TrainingRun
    clock: _Clock
    frontier: FrontierFollower
    monitors: Monitors

    def learn(self) -> bool:
        """Learn to the end, a signal, an alarm or a reward that fails; True unless it is to be resumed.

        A checkpoint is always written, but for an alarm that ends the run: then the last one before it is restored.
        """
        agent, run = self.agent, self.run
        with run.training(self.config.episodes, "texts", done=agent.steps) as self.bar:
            self.began = time.perf_counter()
            try:
                if self.monitors.stop_on and agent.updates == 0:
                    agent.extend(self.config.episodes)  # what a run that goes back to here ends at
                    self.keep()
                self.evaluate()
                _learn(agent, self.config, self.after_update)
            except (RewardError, DialogueError, EngineError):
                self.keep()
                print(f"{run.path} holds what was trained so far; --resume continues it", file=sys.stderr)
                raise
            stopped_by = ", ".join(self.monitors.stopped_by)
            _go_back(agent, checkpoint.read(run.checkpoint) if stopped_by else None)
            if stopped_by:
                self.frontier.cut(agent.steps)
                print(f"stopped by {stopped_by}: back at the checkpoint after {agent.steps} texts", file=sys.stderr)
            else:
                self.keep()
        return bool(stopped_by) or agent.steps >= self.config.episodes

    def after_update(self, agent: TextAgent) -> bool:
        """Log, watch, evaluate and save; False if this update is to be the last."""
        now = time.perf_counter()
        self.clock.seconds, self.began = self.clock.seconds + now - self.began, now
        self.clock.tokens += agent.metrics["rollout/length_mean"] * self.config.batch_size
        self.bar.show(agent.steps, headline(agent.metrics))
        if agent.updates % 10 == 1 and self.parts.collector.last is not None:
            rows = self.parts.collector.last
            self.run.sink.write_samples(*self.parts.task.assessor.decode(rows, 4), agent.steps)
        if agent.updates == 1:
            write_token_page(self.run.path / PAGE, _snapshot(agent, self.parts))
        goes_on = self.monitors(agent)
        paused = time.perf_counter()
        self.evaluate()
        self.began += time.perf_counter() - paused
        if agent.updates % self.config.checkpoint_every == 0 and self.monitors.calm:
            self.keep()
        return not agent.processes.any(self.run.stop.is_set() or not goes_on)

    def keep(self) -> None:
        """Save what a resumed run continues, and the page of tokens."""
        self.agent.save(self.run.checkpoint)
        self.run.folder.write_json(STATE, dataclasses.asdict(self.clock))
        if self.agent.newest is not None:
            write_token_page(self.run.path / PAGE, _snapshot(self.agent, self.parts))

    def evaluate(self) -> None:
        """At its time; a resumed run also where the last one's reward failed."""
        config, agent = self.config, self.agent
        every = updates_between_points(config.evaluate_every, config.episodes, config.batch_size)
        due = every and agent.updates % every == 0 and 0 < agent.steps < config.episodes
        if due and self.frontier.points[-1][STEP] != agent.steps:
            self.frontier.add(agent.steps, self.parts.task.assessor.assess(self.parts.policy))


def _go_back(agent: TextAgent, good: dict[str, Any] | None) -> None:
    """Restore the checkpoint that the main process passes, if it passes one, in all of them."""
    state = agent.processes.all_gather(good)[0]
    if state is not None:
        agent.load_state_dict(state)


def _monitors(config: TrainTextConfig, parts: TextParts, run: TrainingRun) -> Monitors:
    """The monitors of reward hacking of a run, which print their alarms."""
    judge = None if parts.task.assessor.judge is None else parts.task.assessor.judge_rows
    say = partial(print, file=sys.stderr, flush=True)
    return Monitors(config.stop_on or (), judge=judge, path=run.path / FILE, warn=say)


def _learn(agent: TextAgent, config: TrainTextConfig, after_update: Callable[[TextAgent], bool]) -> None:
    if agent.steps < config.episodes:
        agent.learn(None if config.resume else config.episodes, callback=after_update)


def _snapshot(agent: TextAgent, parts: TextParts) -> Snapshot:
    """A few texts of the newest rollout, for the page that shows them token by token."""
    assert agent.newest is not None
    assert parts.collector.last is not None
    rollout, batch = agent.newest
    assessor = parts.task.assessor
    prompts, _ = assessor.decode(parts.collector.last, SHOWN)
    tables = token_tables(
        rollout,
        batch,
        parts.collector.last,
        prompts,
        parts.task.assessor.tokenizer,
        has_critic=agent.config.uses_critic,
    )
    return Snapshot(
        algorithm=agent.config.algorithm,
        updates=agent.updates - 1,
        texts=agent.steps - rollout.num_rows,
        beta=parts.collector.beta,
        tables=tables,
    )
