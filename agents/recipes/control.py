"""The run of ``textenvs train-control``; its settings are in `agents.recipes.commands.control`."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from agents.config import AgentConfig, PlacementConfig
from agents.control.agent import ControlAgent
from agents.control.best import BestKeeper
from agents.control.environments import make_vector
from agents.control.evaluation import evaluate
from agents.control.ppo import ControlPPO
from agents.control.presets import DEFAULT, TRPO_DEFAULT, Preset, preset_for
from agents.control.trpo import ControlTRPO
from agents.recipes.commands.control import Config
from agents.reports.page import write_report
from agents.runs import checkpoint
from agents.runs.devices import check_device
from agents.runs.distributed import alone
from agents.runs.lifecycle import TrainingRun, longer, training_run
from agents.runs.progress import ProgressBar, headline

LAST, BEST = "last.safetensors", "best.safetensors"
EVALUATION_SEED, FINAL_SEED = 1_000_003, 2_000_003
"""Of the episodes that choose the best weights, and of those that measure them."""


def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, and write the run directory.

    Returns:
        The content of ``summary.json``.

    Raises:
        RunDirError: if the run directory cannot be used, or holds no run of these settings to resume.
        gymnasium.error.Error, ModuleNotFoundError: if the id, or its module, is unknown.
        ValueError: if the spaces are not supported, there is no such device, or a launcher started several processes.
        CheckpointError: if the checkpoint to resume from cannot be used.
        Interrupted: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    check_device(config.device)
    alone("train-control")
    torch.set_num_threads(config.threads)
    preset = preset_for(config.env, config.algorithm)
    changed = {name: getattr(config, name) or getattr(preset, name) for name in ("total_steps", "evaluate_every")}
    preset = replace(preset, config=_agent_config(config, preset), **changed)
    evaluation = make_vector(config.env, min(config.eval_episodes, 100))
    agent: ControlAgent = {"ppo": ControlPPO, "trpo": ControlTRPO}[config.algorithm](config.env, preset.config)
    task = {field.name for field in fields(Config)}
    settings = {name: value for name, value in config.identity().items() if name in task} | changed
    settings["settings"] = preset.config.to_dict() | {"device": None}
    with training_run(
        config, script="train_control", settings=settings, checkpoint=LAST, length="total_steps", report=write_report
    ) as run:
        if not config.quiet:
            print(_statement(config, preset), flush=True)
        trainer = _Trainer(config, preset, agent, evaluation, run)
        finished = trainer.train()
        if finished and not config.quiet:
            print(f"evaluating the best weights over {config.eval_episodes} episodes", flush=True)
        summary = trainer.summary() if finished else {}
        return run.finish(summary, finished=finished)


def _agent_config(config: Config, preset: Preset) -> AgentConfig:
    """The settings that ``config`` has of its own, or the preset's with its seed and device."""
    own = fields(preset.config if isinstance(config, AgentConfig) else PlacementConfig)
    return replace(preset.config, **{field.name: getattr(config, field.name) for field in own})


def _statement(config: Config, preset: Preset) -> str:
    """What is trained, how long, and with which settings, for people."""
    kind, usual = type(preset.config), preset_for(config.env, config.algorithm)
    source = "which has no preset" if usual in (DEFAULT, TRPO_DEFAULT) else "which has a preset"
    chosen, default = (each.to_dict() for each in (preset.config, kind()))
    other = ", ".join(f"{name} {getattr(preset.config, name)}" for name in chosen if chosen[name] != default[name])
    return (
        f"{config.algorithm.upper()} on {config.env}, {source}: {preset.total_steps} transitions, evaluated every "
        f"{preset.evaluate_every}; {f'{other}, else ' if other else ''}the defaults of {kind.__name__}"
    )


class _Trainer:
    """Trains an agent in a run: evaluates, keeps the best weights, saves, and counts the seconds."""

    def __init__(
        self, config: Config, preset: Preset, agent: ControlAgent, evaluation: VectorEnv, run: TrainingRun
    ) -> None:
        self.config, self.agent, self.evaluation, self.run = config, agent, evaluation, run
        self.total_steps = preset.total_steps
        self.keeper = BestKeeper(
            evaluation, every=preset.evaluate_every, episodes=config.eval_episodes, seed=EVALUATION_SEED,
            stop_at_return=config.stop_at_return, on_best=lambda best: best.save(run.path / BEST),
        )  # fmt: skip
        self.wall_s = self.cpu_s = 0.0
        state = run.checkpoint_state()
        if state is not None:
            with run.restoring():
                agent.load_state_dict(state["agent"])
                self.keeper.load_state_dict(state["keeper"])
                self.wall_s, self.cpu_s = state["wall_s"], state["cpu_s"]
        agent.logger = run.begin(agent.steps)
        if state is not None and agent.span[1] < self.total_steps:
            # The shorter run ended with an evaluation that this one does not know: its best weights may be others.
            self.keeper.restore_best(agent)
            agent.save(run.path / BEST)
            agent.load_state_dict(state["agent"])
            print(longer(agent.span[1], self.total_steps, "transitions", agent.extend(self.total_steps)), flush=True)

    def train(self) -> bool:
        """Train to the end, to the return asked for, or to a signal; False if it was a signal."""
        agent, keeper, run = self.agent, self.keeper, self.run
        if keeper.reached:
            return True
        with run.training(self.total_steps, "transitions", done=agent.steps) as bar:
            if agent.steps < self.total_steps:
                self._learn(bar)
            self.save()
        if run.stop.is_set() and agent.steps < self.total_steps and not keeper.reached:
            return False
        if not keeper.reached and agent.steps != keeper.last_steps:
            keeper.evaluate(agent)
        return True

    def _learn(self, bar: ProgressBar) -> None:
        began, earlier = time.perf_counter(), self.wall_s
        began_cpu, earlier_cpu = time.process_time(), self.cpu_s

        def callback(agent: ControlAgent) -> bool:
            bar.show(agent.steps, headline(agent.metrics))  # before an evaluation, which may take long
            should_continue = self.keeper(agent)
            self.wall_s = earlier + time.perf_counter() - began
            self.cpu_s = earlier_cpu + time.process_time() - began_cpu
            if agent.updates % self.config.save_every == 0:
                self.save()
            return should_continue and not self.run.stop.is_set()

        self.agent.learn(None if self.agent.span[1] else self.total_steps, callback)

    def save(self) -> None:
        """Write the checkpoint to resume from."""
        times = {"wall_s": self.wall_s, "cpu_s": self.cpu_s}
        state = {"agent": self.agent.state_dict(), "keeper": self.keeper.state_dict(), **times}
        checkpoint.save(self.run.checkpoint, state)

    def summary(self) -> dict[str, Any]:
        """Evaluate the best weights on episodes of their own; the content of ``summary.json``."""
        config, keeper, agent = self.config, self.keeper, self.agent
        train_s, train_cpu_s = self.wall_s - keeper.seconds, self.cpu_s - keeper.cpu_seconds
        keeper.restore_best(agent)
        returns, _ = evaluate(agent, self.evaluation, config.eval_episodes, seed=FINAL_SEED)
        summary = {
            "env": config.env,
            "algorithm": config.algorithm,
            "seed": config.seed,
            "steps": agent.steps,
            "wall_s": round(self.wall_s, 3),
            "train_s": round(train_s, 3),
            "train_cpu_s": round(train_cpu_s, 3),
            "eval_return_mean": float(returns.mean()),
            "eval_return_std": float(returns.std()),
            "eval_episodes": len(returns),
            "best_return_mean": keeper.best_mean,
            "best_steps": keeper.best_steps,
        }
        return summary if config.stop_at_return is None else {**summary, "reached": keeper.reached}


def _reported(config: Config) -> dict[str, Any]:
    """``main``, and its result in a sentence."""
    summary = main(config)
    mean, std = summary["eval_return_mean"], summary["eval_return_std"]
    print(
        f"{config.env} seed {config.seed}: {mean:.1f} ± {std:.1f} over {summary['eval_episodes']} greedy episodes "
        f"after {summary['steps']} steps in {summary['wall_s']:.1f} s ({summary['train_s']:.1f} s without evaluations)"
    )
    return summary
