"""Ablation of the fast paths: CPU seconds of an update with all of them and with one left out, in one process.

    OMP_NUM_THREADS=1 python -m scripts.ablation --repeats 3

All arms of a workload use the same seeds and one thread, and alternate, so that other load on the machine affects
them equally. Reported: median [minimum, maximum] of this process's user and system seconds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.config import PPOConfig
from agents.control import ppo
from agents.control.presets import PRESETS
from agents.runs.cli import command
from reward_models import model as reward_model
from scripts.benchmarks.text.models import BenchSizes, write_models
from scripts.benchmarks.text.ours import BenchOursConfig, build_agent
from textenvs.lm import linear_kernels, packed_attention, packed_forward

Change = tuple[Any, str, Any]
"""Module, name, and its replacement while an arm is built and run."""
never, always = (lambda *_: False), (lambda *_: True)
Arm = tuple[str, tuple[Change, ...], Callable[[], Callable[[], None]]]
"""What is left out, the changes that do so, and a function that builds an agent and returns its update."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Time updates with each piece on and off."""

    repeats: int = 3
    """Timed updates of each arm, after one that is not."""
    only: str = ""
    """Run only workloads whose name contains this; empty: all."""
    epochs: int = 2
    """Passes over each batch of texts."""


def text_workloads(folder: Path, epochs: int) -> Iterator[tuple[str, list[Arm]]]:
    """Updates of a GPT-2 of 4 layers by 256, 64 prompts of 16 tokens, at most 48 new ones; and their fast paths."""
    packed = ((packed_forward, "can_pack", never), (reward_model, "can_pack", never))
    gelu = ((linear_kernels, "NewGELUActivation", type(None)),)
    active = linear_kernels.onednn_is_faster()
    onednn = ((linear_kernels, "onednn_is_faster", lambda: not active),)
    packing = (("packed trunk", packed),)
    half = ((linear_kernels, "half_is_faster", always), (packed_attention, "HALF", ()))
    linear = "oneDNN linear layers" if active else "(oneDNN linear layers switched on)"
    more = (*packing, ("GELU in one kernel", gelu), (linear, onednn))
    sizes = BenchSizes(epochs=epochs)
    ragged = BenchOursConfig(threads=1, mean_length=24.0, sizes=sizes)
    few = BenchOursConfig(threads=1, dtype="bfloat16", sizes=replace(sizes, rows=16, new_tokens=16, epochs=1))
    for name, config, left_out in (
        ("PPO, 64 tokens each", replace(ragged, mean_length=None), packing),
        ("PPO, ragged", ragged, more),
        ("GRPO, ragged", replace(ragged, algorithm="grpo"), packing),
        ("PPO, bfloat16, 16 texts of 32 tokens", few, (("half types computed in float32", half),)),
    ):
        models = write_models(folder / name, config.sizes, mean_length=config.mean_length)

        def build(config: BenchOursConfig = config, models: Path = models) -> Callable[[], None]:
            return build_agent(config, models).iterate

        yield name, [("nothing", (), build), *((piece, change, build) for piece, change in left_out)]


def control_workloads() -> Iterator[tuple[str, list[Arm]]]:
    """Four iterations of PPO with each classic-control task's preset."""
    for env_id in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"):
        config = PRESETS[env_id].config
        assert isinstance(config, PPOConfig)

        def build(native: bool = True, env_id: str = env_id, config: PPOConfig = config) -> Callable[[], None]:
            copies = [lambda: gym.make(env_id)] * config.num_envs
            env = env_id if native else SyncVectorEnv(copies, autoreset_mode=AutoresetMode.SAME_STEP)
            agent, steps = ppo.ControlPPO(env, config), 4 * config.num_envs * config.num_steps

            def run() -> None:
                agent.learn(steps)

            return run

        slow = ((ppo, "is_fast", never),)
        not_native = partial(build, native=False)
        yield env_id, [("nothing", (), build), ("FastMLP", slow, build), ("native vector form", (), not_native)]


@contextmanager
def changed(changes: tuple[Change, ...]) -> Iterator[None]:
    """Apply an arm's changes inside the context."""
    with ExitStack() as on:
        for change in changes:
            on.enter_context(patch.object(*change))
        yield


def measure(arms: list[Arm], repeats: int) -> list[list[float]]:
    """CPU seconds of each arm's updates, alternating between arms."""
    updates = []
    seconds: list[list[float]] = [[] for _ in arms]
    for _, changes, build in arms:
        with changed(changes):
            updates.append(build())
    for repeat in range(repeats + 1):
        for arm in sorted(range(len(arms)), reverse=bool(repeat % 2)):
            with changed(arms[arm][1]):
                began = time.process_time()
                updates[arm]()
            seconds[arm].append(time.process_time() - began)
    return [times[1:] for times in seconds]


def main(config: AblationConfig) -> dict[str, Any]:
    """Print the table; a ratio above 1 is what leaving the piece out costs."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    print("| workload | left out | CPU seconds | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        workloads = [*text_workloads(Path(scratch), config.epochs), *control_workloads()]
        for workload, arms in (each for each in workloads if config.only in each[0]):
            timed = measure(arms, config.repeats)
            whole = statistics.median(timed[0])
            for (piece, _, _), times in zip(arms, timed, strict=True):
                ratio = found[f"{workload}: {piece}"] = statistics.median(times) / whole
                spread = f"{statistics.median(times):.2f} [{min(times):.2f}, {max(times):.2f}]"
                print(f"| {workload} | {piece} | {spread} | {ratio:.2f} |", flush=True)
    return found


command_line = command(AblationConfig, main, __doc__)
