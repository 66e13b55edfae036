"""The run of ``textenvs train-text``: train, evaluate, leave everything in the folder; its settings are in `config`."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from agents.evaluation.curve import FRONTIER, FrontierFollower, updates_between_points
from agents.evaluation.metrics import compare
from agents.evaluation.token_page import PAGE, Snapshot, write_token_page
from agents.evaluation.token_table import token_tables
from agents.lm.memory import PeakMemory, held_bytes
from agents.lm.saving import save_adapter, save_model
from agents.recipes.rlhf.build import TextParts, build_parts
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.rlhf.memory_plan import as_text, planned_bytes
from agents.runs import checkpoint
from agents.runs.devices import check_device
from agents.runs.distributed import Processes
from agents.runs.logging import FileSink
from agents.runs.progress import TextProgress, stop_on_interrupt
from agents.runs.run_dir import SUMMARY, RunDir
from agents.text.agent import TextAgent

CHECKPOINT = "checkpoint.safetensors"
STATE = "state.json"
SAMPLES = "samples.json"
MODEL = "model"
ADAPTER = "adapter"
SHOWN = 8
"""Texts on the page of tokens: as many as GRPO's group has, so that one can be seen whole."""


def main(config: TrainTextConfig) -> dict[str, Any]:
    """Run it; returns what ``summary.json`` holds, or after Ctrl-C ``{"interrupted": True, ...}`` so far.

    Raises:
        RunDirError, ValueError, OSError, CheckpointError: each with a message that says what to do.
    """
    if config.plan:
        print(as_text(planned_bytes(config), config.memory))
        return {}
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    check_device(config.device)
    processes = Processes.launched(config.device)
    if not processes.is_main:
        _follow(config, processes)
        return {}
    with RunDir(
        config.run_dir, script="train_text", overwrite=config.overwrite, resume=config.resume, reads=config.reads
    ) as run:
        if config.resume:
            run.check_resumable(_identity(config), CHECKPOINT)
        peak = PeakMemory(config.device)
        parts = build_parts(config, processes)
        agent = _agent(config, parts)
        trained = _Clock()
        if config.resume:
            agent.load_state_dict(processes.broadcast(checkpoint.load(run.path / CHECKPOINT)))
            trained = _Clock(**json.loads((run.path / STATE).read_text()))
        # Before the run begins: a reward that cannot be used shows here.
        before = parts.assessor.assess(parts.task.models.start)
        run.begin(_identity(config))
        resume_at = agent.steps if config.resume else None
        with closing(FileSink(run.path, resume_at=resume_at)) as agent.logger:
            frontier = FrontierFollower(run.path / FRONTIER, before, agent.logger, resume_at=resume_at)
            finished = _train(agent, config, parts, run, trained, frontier)
            peak_bytes = peak.bytes()
            save_model(parts.policy, parts.assessor.tokenizer, run.path / MODEL)
            save_adapter(parts.policy, run.path / ADAPTER)
            after = parts.assessor.assess(parts.policy)
            if finished:
                frontier.add(agent.steps, after)
        figures, samples = compare(before, after)
        run.write_json(SAMPLES, {"samples": samples})
        summary = {
            "algorithm": config.algorithm,
            "seed": config.seed,
            "episodes": agent.steps,
            "eval_prompts": len(before.samples.prompts),
            "wall_s": trained.seconds,
            "response_tokens_per_s": trained.tokens / max(trained.seconds, 1e-9),
            "peak_memory_bytes": peak_bytes,
            **{f"{name}_bytes": size for name, size in held_bytes(parts.policy, agent.optimizer).items()},
            **figures,
        }
        if not finished:
            return summary | {"interrupted": True}
        run.write_json(SUMMARY, summary)
        return summary


def _agent(config: TrainTextConfig, parts: TextParts) -> TextAgent:
    return TextAgent(
        config.agent_config(),
        policy=parts.policy,
        collector=parts.collector,
        reference=parts.task.models.plain,
    )


def _follow(config: TrainTextConfig, processes: Processes) -> None:
    """What a process does that is not the first: its share of every update, and nothing that lasts."""
    parts = build_parts(config, processes)
    agent = _agent(config, parts)
    if config.resume:
        agent.load_state_dict(processes.broadcast(None))
    with stop_on_interrupt() as interrupted:
        _learn(agent, config, parts, interrupted)


@dataclass
class _Clock:
    """Seconds of training and response tokens so far, the resumed part included."""

    seconds: float = 0.0
    tokens: float = 0.0


def _train(
    agent: TextAgent, config: TrainTextConfig, parts: TextParts, run: RunDir, clock: _Clock, frontier: FrontierFollower
) -> bool:
    """Learn to the end, or to Ctrl-C; whether it was the end. A checkpoint lies there either way."""
    evaluate_every = updates_between_points(config.evaluate_every, config.episodes, config.batch_size)

    def keep() -> None:
        agent.save(run.path / CHECKPOINT)
        run.write_json(STATE, dataclasses.asdict(clock))
        if agent.newest is not None:
            write_token_page(run.path / PAGE, _snapshot(agent, parts))

    with TextProgress(config.episodes, run.path) as progress, stop_on_interrupt() as interrupted:
        began = time.perf_counter()

        def after_update() -> None:
            nonlocal began
            now = time.perf_counter()
            clock.seconds, began = clock.seconds + now - began, now
            clock.tokens += agent.metrics["rollout/length_mean"] * config.batch_size
            progress.show(agent.steps, agent.metrics)
            if agent.updates % 10 == 1 and parts.collector.last is not None:
                progress.log_samples(*parts.assessor.decode(parts.collector.last, 4), agent.steps)
            if agent.updates == 1:
                write_token_page(run.path / PAGE, _snapshot(agent, parts))
            if evaluate_every and agent.updates % evaluate_every == 0 and agent.steps < config.episodes:
                paused = time.perf_counter()
                frontier.add(agent.steps, parts.assessor.assess(parts.policy))
                began += time.perf_counter() - paused
            if agent.updates % config.checkpoint_every == 0:
                keep()

        _learn(agent, config, parts, interrupted, after_update)
        keep()
    return agent.steps >= config.episodes


def _learn(
    agent: TextAgent,
    config: TrainTextConfig,
    parts: TextParts,
    interrupted: threading.Event,
    after_update: Callable[[], None] = lambda: None,
) -> None:
    """Learn to the end, or until one of the processes is interrupted; the policy rests while the critic warms up."""

    def should_continue(agent: TextAgent) -> bool:
        set_trainable(parts.policy.actor_parameters(), agent.updates >= config.critic_warmup)
        after_update()
        return not agent.processes.any(interrupted.is_set())

    set_trainable(parts.policy.actor_parameters(), agent.updates >= config.critic_warmup)
    if agent.steps < config.episodes:
        agent.learn(None if config.resume else config.episodes, callback=should_continue)


def _snapshot(agent: TextAgent, parts: TextParts) -> Snapshot:
    """A few texts of the newest rollout, for the page that shows them token by token."""
    assert agent.newest is not None
    assert parts.collector.last is not None
    rollout, batch = agent.newest
    prompts, _ = parts.assessor.decode(parts.collector.last, SHOWN)
    tables = token_tables(
        rollout, batch, parts.collector.last, prompts, parts.assessor.tokenizer, has_critic=agent.config.uses_critic
    )
    return Snapshot(
        algorithm=agent.config.algorithm,
        updates=agent.updates - 1,
        texts=agent.steps - rollout.num_rows,
        beta=parts.collector.beta,
        tables=tables,
    )


def set_trainable(parameters: list[torch.nn.Parameter], trainable: bool) -> None:
    """Whether gradients reach ``parameters``: those of the policy rest while the critic warms up."""
    for parameter in parameters:
        parameter.requires_grad_(trainable)


def _identity(config: TrainTextConfig) -> dict[str, Any]:
    """The settings that a resumed run must share."""
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("overwrite", "resume", "run_dir", "threads")
    }
