"""How far from the best policy does PPO end? Measured where the best is known: on the enumerable text environments.

    python -m scripts.exact_gap --policy tabular          a table of logits, through the step collector
    python -m scripts.exact_gap --policy gpt2             a tiny GPT-2, through the text collector

The gap is (optimum - attained) / (optimum - start) of the objective ``E[score] - beta KL(pi || pi_ref)``, all three by
enumeration: no sampling enters the measurement. The start is the reference, as in the tuning of a language model: the
table starts as the task's own, the GPT-2 as itself before training. 0 % is optimal, 100 % has learnt nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

import textenvs  # noqa: F401 (registers the ids)
from agents.config import PPOConfig
from agents.ppo import PPO
from agents.schedules import Linear
from agents.tabular import TabularPolicy
from scripts.front_door import enter
from scripts.run_dir import RunDir
from textenvs import exact
from textenvs.exact_envs import EOS_TOKEN, ExactTask

ENVS = ("textenvs/ExactSpelling-v0", "textenvs/ExactSentiment-v0", "textenvs/ExactRandom-v0")
Table = np.ndarray
"""Log-probs ``[M, S, V]``."""


@dataclass(frozen=True, kw_only=True)
class ExactGapConfig:
    """Settings of the measurement."""

    policy: Literal["tabular", "gpt2"] = "tabular"
    """what is trained"""
    algorithm: Literal["ppo"] = "ppo"
    """what trains it"""
    envs: tuple[str, ...] = ENVS
    """ids of environments with a known optimum"""
    seed: int = 0
    """of actions, prompts and minibatches; and of the GPT-2's weights"""
    updates: int | None = None
    """rollouts to learn from, each of 512 episodes side by side; None: 80 for the table, 120 for the GPT-2"""
    run_dir: Path | None = None
    """folder for config.json and summary.json; None writes nothing"""
    overwrite: bool = False
    """throw away a finished run in that folder"""


@dataclass(frozen=True)
class GapResult:
    """One training and its distance from the optimum."""

    gap: float
    """share of (optimum - start) that is still to go"""
    start: float
    """objective of the reference, reward units"""
    attained: float
    """objective of the trained policy, reward units"""
    optimum: float
    """beta log Z, reward units"""
    kl: float
    """of the trained policy, nats per sequence"""
    optimal_kl: float
    """of the best policy, nats per sequence"""
    train_s: float
    """seconds of training"""


def train_tabular(env_id: str, *, seed: int = 0, updates: int = 80, num_envs: int = 512) -> GapResult:
    """PPO on a table that starts as the reference, stepping through the environment like any control task."""
    policy: Any = None
    envs = gym.make_vec(env_id, num_envs=num_envs, acting=lambda *asked: policy.acting(*asked))
    task: ExactTask = envs.unwrapped.task  # type: ignore[attr-defined]
    num_actions = len(task.words)
    policy = TabularPolicy(task.states, num_actions, task.ref_logprobs.reshape(-1, num_actions))
    config = PPOConfig(
        num_steps=16,
        epochs=4,
        minibatch_size=2048,
        learning_rate=Linear(0.05, 0.0),
        gamma=1.0,
        lam=1.0,
        value_coef=1.0,
        max_grad_norm=10.0,
        seed=seed,
    )
    agent = PPO(envs, config, policy=policy)

    def table() -> Table:
        logits = policy.logits[:-1].detach().double()
        return torch.log_softmax(logits, -1).numpy().reshape(task.ref_logprobs.shape)

    return _learn(agent, task, table, updates * num_envs * config.num_steps)


def train_gpt2(env_id: str, *, seed: int = 0, updates: int = 120, num_envs: int = 512) -> GapResult:
    """PPO on a tiny GPT-2, whose own starting distribution is the reference, by whole episodes of text."""
    from agents.causal_lm import CausalLMPolicy
    from agents.text_collector import TextCollector
    from textenvs.reference import CausalLMReference

    vocab_size = len(gym.make_vec(env_id, num_envs=1).unwrapped.task.words)  # type: ignore[attr-defined]
    model = tiny_gpt2(vocab_size, seed=seed)
    envs = gym.make_vec(env_id, num_envs=num_envs, reference=CausalLMReference(model))
    task: ExactTask = envs.unwrapped.task  # type: ignore[attr-defined]
    policy = CausalLMPolicy(model, eos_token_id=EOS_TOKEN)
    config = PPOConfig(
        epochs=4,
        minibatch_size=128,
        learning_rate=Linear(2e-3, 0.0),
        gamma=1.0,
        lam=1.0,
        value_coef=0.2,
        max_grad_norm=1.0,
        seed=seed,
    )
    agent = PPO(None, config, policy=policy, collector=TextCollector(envs, seed=seed))

    @torch.no_grad()
    def scorer(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        return policy.evaluate(torch.from_numpy(prompts), torch.from_numpy(completions)).logprobs.numpy()

    return _learn(agent, task, lambda: exact.tabulate(task.tree, task.prompts, scorer), updates * num_envs)


def tiny_gpt2(vocab_size: int, *, seed: int) -> Any:
    """A GPT-2 of 2 layers by 64 whose random weights are large enough for a distribution of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=8,
                n_embd=64,
                n_layer=2,
                n_head=2,
                initializer_range=0.1,
                bos_token_id=EOS_TOKEN,
                eos_token_id=EOS_TOKEN,
            )
        ).eval()


def _learn(agent: PPO, task: ExactTask, table: Callable[[], Table], total_steps: int) -> GapResult:
    began = time.perf_counter()
    agent.learn(total_steps)
    train_s = time.perf_counter() - began
    trained = table()
    attained = task.outcome(trained)
    return GapResult(
        gap=task.gap(trained),
        start=task.start.mean_objective,
        attained=attained.mean_objective,
        optimum=task.best.mean_objective,
        kl=float(attained.kl.mean()),
        optimal_kl=float(task.best.kl.mean()),
        train_s=train_s,
    )


TRAINERS: dict[str, Callable[..., GapResult]] = {"tabular": train_tabular, "gpt2": train_gpt2}


def main(config: ExactGapConfig) -> dict[str, Any]:
    """Train on every environment, and leave the summary in the run directory if there is one.

    Returns:
        The summary, one flat object.

    Raises:
        RunDirError: if the run directory cannot be used.
        gymnasium.error.Error: if an id is unknown.
    """
    torch.set_num_threads(1)  # the arrays are small: a second thread costs more than it brings
    if config.run_dir is None:
        return measure(config)
    with RunDir(config.run_dir, overwrite=config.overwrite) as run:
        run.write_json("config.json", asdict(config))
        summary = measure(config)
        run.write_json("summary.json", summary)
        return summary


def measure(config: ExactGapConfig) -> dict[str, Any]:
    """Train on every environment and print a line for each; the summary, one flat object."""
    options = {} if config.updates is None else {"updates": config.updates}
    summary: dict[str, Any] = {"policy": config.policy, "algorithm": config.algorithm, "seed": config.seed}
    print(f"{'environment':28}{'start':>9}{'attained':>10}{'optimum':>9}{'KL':>7}{'of best':>9}{'gap %':>8}{'s':>7}")
    for env_id in config.envs:
        result = TRAINERS[config.policy](env_id, seed=config.seed, **options)
        print(
            f"{env_id:28}{result.start:9.4f}{result.attained:10.4f}{result.optimum:9.4f}{result.kl:7.3f}"
            f"{result.optimal_kl:9.3f}{100 * result.gap:8.3f}{result.train_s:7.1f}",
            flush=True,
        )
        name = env_id.removeprefix("textenvs/").removesuffix("-v0")
        summary |= {f"{name}_{key}": value for key, value in asdict(result).items()}
    summary["gap_worst"] = max(value for key, value in summary.items() if key.endswith("_gap"))
    summary["wall_s"] = sum(value for key, value in summary.items() if key.endswith("_train_s"))
    return summary


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; returns the exit code: 0, 2 on bad input, 130 after Ctrl-C."""
    return enter(ExactGapConfig, main, description=__doc__, arguments=arguments, show=False)


if __name__ == "__main__":
    sys.exit(command_line())
