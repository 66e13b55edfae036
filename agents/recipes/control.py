"""Train PPO or TRPO on a control task: any Gymnasium id, your own included.

    textenvs train-control --env CartPole-v1 --seed 0 --run-dir runs/cartpole
    textenvs train-control --env my_module:MyEnv-v0 --algorithm trpo --run-dir runs/mine

The run directory gets ``config.json``, ``progress.csv`` and TensorBoard events, ``last.safetensors`` (from which
``--resume`` goes on, bit for bit), ``best.safetensors`` (the best greedy evaluation's agent) and ``summary.json``.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from agents.algorithms.loading import ALGORITHMS
from agents.control.agent import ControlAgent
from agents.control.best import BestKeeper
from agents.control.environments import make_vector
from agents.control.evaluation import evaluate
from agents.control.presets import preset_for
from agents.runs import checkpoint
from agents.runs.cli import enter
from agents.runs.devices import check_device
from agents.runs.logging import FileSink
from agents.runs.run_dir import CONFIG, SUMMARY, RunDir, RunDirError

NEUTRAL = ("run_dir", "resume", "overwrite", "quiet", "threads", "save_every")
"""Settings that a resumed run may change: its weights do not depend on them."""
LAST, BEST = "last.safetensors", "best.safetensors"
EVALUATION_SEED, FINAL_SEED = 1_000_003, 2_000_003
"""Episodes that choose the best weights, and those that judge them, differ."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train an agent on a control task."""

    run_dir: Path
    """folder for everything the run leaves behind"""
    env: str = "CartPole-v1"
    """Gymnasium id; "module:Env-v0" imports the module first"""
    algorithm: Literal["ppo", "trpo"] = "ppo"
    """what trains"""
    seed: int = 0
    """of weights, actions, minibatches and environments"""
    device: str = "cpu"
    """where the networks live"""
    total_steps: int | None = None
    """transitions to train for; default: the preset's"""
    stop_at_return: float | None = None
    """end as soon as a greedy evaluation over --eval-episodes reaches this mean return"""
    evaluate_every: int | None = None
    """transitions between two evaluations; default: the preset's"""
    eval_episodes: int = 100
    """episodes per evaluation, and in the final one"""
    save_every: int = 20
    """updates between two checkpoints to resume from"""
    threads: int = 1
    """CPU threads; networks this small are fastest on one"""
    resume: bool = False
    """go on with the unfinished run in --run-dir"""
    overwrite: bool = False
    """throw away the run in --run-dir"""
    quiet: bool = False
    """no progress bar"""

    def __post_init__(self) -> None:
        for name in ("total_steps", "evaluate_every", "eval_episodes", "save_every", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, received {value}")


def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, and write the run directory.

    Returns:
        What ``summary.json`` holds.

    Raises:
        RunDirError: if the run directory cannot be used, or holds a run of another algorithm or with other settings.
        ValueError: if the id is unknown, its spaces are not supported, or there is no such device.
        CheckpointError: if the checkpoint to resume from cannot be used.
        KeyboardInterrupt: after Ctrl-C, once what was trained is saved.
    """
    check_device(config.device)
    torch.set_num_threads(config.threads)
    preset = preset_for(config.env, config.algorithm)
    settings = replace(preset.config, seed=config.seed, device=config.device)
    total_steps = config.total_steps or preset.total_steps
    try:
        evaluation = make_vector(config.env, min(config.eval_episodes, 100))
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise ValueError(f"cannot make the environment {config.env!r}: {error}") from error
    agent = ALGORITHMS[config.algorithm](config.env, settings)
    with RunDir(config.run_dir, script="train_control", resume=config.resume, overwrite=config.overwrite) as run:
        described = {**_plain(config), "total_steps": total_steps, "settings": settings.to_dict()}
        if config.resume:
            _check_same_settings(described, run)
        run.begin(None if config.resume else described)
        summary = _train(config, agent, evaluation, run)
        run.write_json(SUMMARY, summary)
        return summary


def _train(config: Config, agent: ControlAgent, evaluation: VectorEnv, run: RunDir) -> dict[str, Any]:
    """Train to the end, keep the best weights, judge them by episodes of their own; the summary."""
    preset = preset_for(config.env, config.algorithm)
    total_steps = config.total_steps or preset.total_steps
    keeper = BestKeeper(
        evaluation,
        every=config.evaluate_every or preset.evaluate_every,
        episodes=config.eval_episodes,
        seed=EVALUATION_SEED,
        stop_at_return=config.stop_at_return,
        on_best=lambda best: best.save(run.path / BEST),
    )
    watch = _Watch(keeper, run.path / LAST, config.save_every)
    if config.resume and watch.path.exists():
        watch.restore(agent)
    agent.logger = sink = FileSink(run.path, resume_at=agent.steps if config.resume else None)
    try:
        if not keeper.reached:
            with _Progress(total_steps, config.quiet) as progress:
                watch.train(agent, total_steps, progress)
            if not keeper.reached and agent.steps != keeper.last_steps:
                keeper.evaluate(agent)
    finally:
        sink.close()
    keeper.give_back(agent)
    returns, _ = evaluate(agent, evaluation, config.eval_episodes, seed=FINAL_SEED)
    summary = {
        "env": config.env,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "steps": agent.steps,
        "wall_s": round(watch.wall_s, 3),
        "train_s": round(watch.wall_s - watch.evaluation_s, 3),
        "train_cpu_s": round(watch.cpu_s - watch.evaluation_cpu_s, 3),
        "eval_return_mean": float(returns.mean()),
        "eval_return_std": float(returns.std()),
        "eval_episodes": len(returns),
        "best_return_mean": keeper.best_mean,
        "best_steps": keeper.best_steps,
    }
    if config.stop_at_return is not None:
        summary["reached"] = keeper.reached
    return summary


class _Watch:
    """Saves now and then, remembers the seconds, and stops between two updates on Ctrl-C."""

    def __init__(self, keeper: BestKeeper, path: Path, save_every: int) -> None:
        self.keeper, self.path, self.save_every = keeper, path, save_every
        self.wall_s = self.cpu_s = 0.0
        self.evaluation_s = self.evaluation_cpu_s = 0.0
        self.interrupted = False

    def train(self, agent: ControlAgent, total_steps: int, progress: Callable[[ControlAgent], None]) -> None:
        before = signal.signal(signal.SIGINT, self._interrupt)
        began, earlier = time.perf_counter(), self.wall_s
        began_cpu, earlier_cpu = time.process_time(), self.cpu_s

        def callback(agent: ControlAgent) -> bool:
            should_continue = self.keeper(agent)
            self.wall_s = earlier + time.perf_counter() - began
            self.cpu_s = earlier_cpu + time.process_time() - began_cpu
            self.evaluation_s, self.evaluation_cpu_s = self.keeper.seconds, self.keeper.cpu_seconds
            progress(agent)
            if agent.updates % self.save_every == 0:
                self.save(agent)
            return should_continue and not self.interrupted

        try:
            agent.learn(None if agent.span[1] else total_steps, callback)
        finally:
            signal.signal(signal.SIGINT, before)
        self.save(agent)
        if self.interrupted:
            raise KeyboardInterrupt(f"{self.path} holds what was trained; go on with --resume")

    def _interrupt(self, *_: object) -> None:
        if self.interrupted:  # the second Ctrl-C does not wait for the update to end
            raise KeyboardInterrupt
        self.interrupted = True

    def save(self, agent: ControlAgent) -> None:
        times = {"wall_s": self.wall_s, "cpu_s": self.cpu_s}
        checkpoint.save(self.path, {"agent": agent.state_dict(), "keeper": self.keeper.state_dict(), **times})

    def restore(self, agent: ControlAgent) -> None:
        state = checkpoint.load(self.path)
        if state["agent"]["env_id"] != agent.env_id:
            raise checkpoint.CheckpointError(f"{self.path} was trained on {state['agent']['env_id']}")
        agent.load_state_dict(state["agent"])
        self.keeper.load_state_dict(state["keeper"])
        self.wall_s, self.evaluation_s = state["wall_s"], self.keeper.seconds
        self.cpu_s, self.evaluation_cpu_s = state["cpu_s"], self.keeper.cpu_seconds


class _Progress:
    """A progress bar with the last figures and the time left."""

    def __init__(self, total_steps: int, quiet: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        self._bar = Progress(*columns, TimeRemainingColumn(), disable=quiet, transient=True)
        self._task = self._bar.add_task("training", total=total_steps)

    def __enter__(self) -> Callable[[ControlAgent], None]:
        self._bar.start()
        return self._show

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def _show(self, agent: ControlAgent) -> None:
        mean = agent.metrics.get("rollout/return_mean", float("nan"))
        text = f"{agent.steps} steps, return {mean:.1f}"
        self._bar.update(self._task, completed=agent.steps, description=text)


def _check_same_settings(described: dict[str, Any], run: RunDir) -> None:
    """Refuse to go on with a run of another algorithm, or of other settings; the message names them."""
    theirs, ours = json.loads((run.path / CONFIG).read_text()), json.loads(json.dumps(described))
    if theirs.get("algorithm") != ours["algorithm"]:
        raise RunDirError(f"the run in {run.path} is of --algorithm {theirs.get('algorithm')}, not {ours['algorithm']}")
    names = [name for name in ours if name not in NEUTRAL and theirs.get(name) != ours[name]]
    if names:
        other = ", ".join(f"{name}={theirs.get(name)!r} (now {ours[name]!r})" for name in names)
        raise RunDirError(f"the run in {run.path} has other settings: {other}")


def _plain(config: Config) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def _reported(config: Config) -> dict[str, Any]:
    """``main``, and its figures in a sentence."""
    summary = main(config)
    mean, std = summary["eval_return_mean"], summary["eval_return_std"]
    print(
        f"{config.env} seed {config.seed}: {mean:.1f} ± {std:.1f} over {summary['eval_episodes']} greedy episodes "
        f"after {summary['steps']} steps in {summary['wall_s']:.1f} s ({summary['train_s']:.1f} s without evaluations)"
    )
    return summary


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; returns the exit code: 0, 2 on bad input, 130 after Ctrl-C."""
    return enter(Config, _reported, description=__doc__, arguments=arguments, show=False)
