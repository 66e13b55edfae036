"""The optimality gap of each algorithm on enumerable text problems, whose best policy is known.

    python -m scripts.exact_gap                                    PPO on a table of logits
    python -m scripts.exact_gap --algorithm all                    each of ``agents.text.config.PAPERS``
    python -m scripts.exact_gap --algorithm grpo --policy gpt2     a tiny GPT-2, by whole texts
    python -m scripts.exact_gap --policy dialogue --algorithm all  a table of dialogues, by token, turn and state

The gap is (optimum - attained) / (optimum - start) of the objective ``E[score] - beta KL(pi || pi_ref)``, all three by
enumeration: no sampling enters the measurement. The start is the reference, as in the tuning of a language model: the
table starts as the task's own, the GPT-2 as itself before training. 0 % is optimal, 100 % has learned nothing.

Two policies: a table that can represent any policy, so that a remaining gap is due to the algorithm; and a tiny GPT-2,
whose KL coefficient is annealed: at a constant one, training collapses to one of the best policy's modes. The KL is a
penalty in the reward, as in the objective (a KL in the loss, as in GRPO's paper, is biased: ``scripts.kl_bias``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch

import textenvs  # noqa: F401 (registers the ids)
from agents.agent import Agent
from agents.algorithms.ppo import PPO
from agents.config import PPOConfig
from agents.functional.schedules import Linear
from agents.runs.cli import command
from agents.runs.run_dir import measured
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import Paper, TextAgentConfig
from agents.text.kl_controllers import AnnealedKL
from agents.verification.dialogue_gap import measure_dialogues
from agents.verification.tabular import TabularPolicy, TabularTextPolicy, write
from textenvs.exact import enumeration as exact
from textenvs.exact.envs import EOS_TOKEN, ExactTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENVS = ("textenvs/ExactSpelling-v0", "textenvs/ExactSentiment-v0", "textenvs/ExactRandom-v0")
ALGORITHMS: tuple[Paper, ...] = get_args(Paper)
NUM_ENVS = 512
"""Episodes side by side, of the table's PPO; texts a batch of all others."""
PPO_TABLE = PPOConfig(
    num_steps=16,
    epochs=4,
    minibatch_size=2048,
    learning_rate=Linear(0.05, 0.0),
    gamma=1.0,
    lam=1.0,
    value_coef=1.0,
    max_grad_norm=10.0,
)
VARIANTS: tuple[Paper, ...] = ("dr_grpo", "dapo", "gspo", "cispo", "reinforce++", "reinforce++_baseline")
"""They differ in what happens off policy: four optimizer steps a batch."""
TABLE: dict[Paper, dict[str, Any]] = {
    "grpo": {"learning_rate": 0.05, "minibatch_size": NUM_ENVS, "epochs": 1, "group_size": 8},
    "rloo": {"learning_rate": 0.05, "group_size": 8},
    "reinforce": {"learning_rate": 0.05},
    **{name: {"learning_rate": 0.05, "minibatch_size": NUM_ENVS // 4} for name in VARIANTS},
}
"""Over the papers' choices, for a table; its PPO steps through the environment instead, with ``PPO_TABLE``."""
GPT2: dict[Paper, dict[str, Any]] = {
    "ppo": {"learning_rate": 1e-3, "minibatch_size": 128, "epochs": 4, "lam": 1.0, "value_coef": 0.2},
    "grpo": {"learning_rate": 5e-4, "minibatch_size": 128, "epochs": 2, "group_size": 8},
    "rloo": {"learning_rate": 1e-3, "group_size": 8},
    "reinforce": {"learning_rate": 1e-3},
    **{name: {"learning_rate": 5e-4, "minibatch_size": NUM_ENVS // 4} for name in VARIANTS},
}
"""Over the papers' choices, for the tiny GPT-2."""
ANNEALED, SHARE = 3.0, 0.5
"""The GPT-2's initial KL coefficient over the task's own, and the share of episodes in which it falls to that."""
UPDATES: dict[str, dict[Paper, int]] = {
    "tabular": dict.fromkeys(ALGORITHMS, 400) | {"ppo": 80},
    "gpt2": dict.fromkeys(ALGORITHMS, 600) | {"ppo": 240},
}
"""Rollouts that each training learns from."""


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


def train_tabular(
    env_id: str, algorithm: Paper = "ppo", *, seed: int = 0, updates: int | None = None, num_envs: int = NUM_ENVS
) -> GapResult:
    """A table that starts as the reference: PPO step by step like any control task, the others by whole texts.

    Args:
        env_id: of an environment with a known optimum.
        algorithm: what trains.
        seed: of actions, prompts and minibatches.
        updates: rollouts to learn from; None: ``UPDATES``.
        num_envs: episodes side by side, a multiple of the group size.
    """
    number = UPDATES["tabular"][algorithm] if updates is None else updates
    if algorithm == "ppo":
        return _train_table_by_steps(env_id, seed, number, num_envs)
    config = settings(algorithm, TABLE[algorithm], num_envs, seed)
    envs = gym.make_vec(env_id, num_envs=num_envs, group_size=config.group_size)
    task: ExactTask = envs.unwrapped.task  # type: ignore[attr-defined]
    logits = task.ref_logprobs.reshape(-1, len(task.words))
    policy = TabularTextPolicy(task.states, logits, prompt_length=task.prompts.shape[1], eos_token_id=EOS_TOKEN)
    collector = TextCollector(envs, seed=seed, generate=write, dynamic_sampling=config.dynamic_sampling)
    table: Any = policy  # acts through `write` alone
    agent = TextAgent(config, policy=table, collector=collector)
    return _learn(agent, task, lambda: _normalized(policy.table.logits, task), number * num_envs)


def _train_table_by_steps(env_id: str, seed: int, updates: int, num_envs: int) -> GapResult:
    policy: Any = None
    envs = gym.make_vec(env_id, num_envs=num_envs, acting=lambda *asked: policy.acting(*asked))
    task: ExactTask = envs.unwrapped.task  # type: ignore[attr-defined]
    num_actions = len(task.words)
    policy = TabularPolicy(task.states, num_actions, task.ref_logprobs.reshape(-1, num_actions))
    agent = PPO(envs, replace(PPO_TABLE, seed=seed), policy=policy)
    return _learn(agent, task, lambda: _normalized(policy.logits, task), updates * num_envs * PPO_TABLE.num_steps)


def train_gpt2(
    env_id: str, algorithm: Paper = "ppo", *, seed: int = 0, updates: int | None = None, num_envs: int = NUM_ENVS
) -> GapResult:
    """A tiny GPT-2, whose own starting distribution is the reference, by texts; arguments as `train_tabular`'s."""
    from agents.lm.causal_lm import CausalLMPolicy
    from textenvs.wrappers.reference import CausalLMReference

    config = settings(algorithm, GPT2[algorithm], num_envs, seed)
    vocab_size = len(gym.make_vec(env_id, num_envs=1).unwrapped.task.words)  # type: ignore[attr-defined]
    model = tiny_gpt2(vocab_size, seed=seed)
    envs = gym.make_vec(env_id, num_envs=num_envs, group_size=config.group_size, reference=CausalLMReference(model))
    task: ExactTask = envs.unwrapped.task  # type: ignore[attr-defined]
    policy = CausalLMPolicy(model, eos_token_id=EOS_TOKEN, critic="shared" if config.uses_critic else "none")
    number = UPDATES["gpt2"][algorithm] if updates is None else updates
    price = AnnealedKL(start=ANNEALED * task.beta, end=task.beta, horizon=SHARE * number * num_envs)
    collector = TextCollector(envs, seed=seed, kl_controller=price, dynamic_sampling=config.dynamic_sampling)
    agent = TextAgent(config, policy=policy, collector=collector)

    @torch.no_grad()
    def scorer(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        return policy.evaluate(torch.from_numpy(prompts), torch.from_numpy(completions)).logprobs.numpy()

    return _learn(agent, task, lambda: exact.tabulate(task.tree, task.prompts, scorer), number * num_envs)


TRAINERS: dict[str, Callable[..., GapResult]] = {"tabular": train_tabular, "gpt2": train_gpt2}


def settings(algorithm: Paper, chosen: dict[str, Any], num_envs: int, seed: int) -> TextAgentConfig:
    """The algorithm as its paper has it, but for the KL in the reward and what is ``chosen`` here."""
    asked = {"minibatch_size": num_envs, "max_grad_norm": 1.0, "kl_in": "reward", "kl_estimator": None, "seed": seed}
    asked |= chosen
    return TextAgentConfig.for_algorithm(algorithm, **(asked | {"learning_rate": Linear(chosen["learning_rate"], 0.0)}))


def tiny_gpt2(vocab_size: int, *, seed: int) -> PreTrainedModel:
    """A GPT-2 of 2 layers by 64 whose random weights give a non-uniform distribution."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"vocab_size": vocab_size, "n_positions": 8, "n_embd": 64, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, initializer_range=0.1, bos_token_id=EOS_TOKEN, eos_token_id=EOS_TOKEN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def _normalized(logits: torch.Tensor, task: ExactTask) -> np.ndarray:
    """Log-probs ``[M, S, V]`` of a table whose last row is of no prefix."""
    return torch.log_softmax(logits[:-1].detach().double(), -1).numpy().reshape(task.ref_logprobs.shape)


def _learn(agent: Agent, task: ExactTask, table: Callable[[], np.ndarray], total_steps: int) -> GapResult:
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


@dataclass(frozen=True, kw_only=True)
class ExactGapConfig:
    """Settings of the measurement."""

    policy: Literal["tabular", "gpt2", "dialogue"] = "tabular"
    """what is trained; "dialogue": a table of dialogues of several turns, by token, turn and state"""
    algorithm: Paper | Literal["all"] = "ppo"
    """what trains it; "all": one after the other"""
    envs: tuple[str, ...] = ENVS
    """ids of environments with a known optimum; those of dialogues are given"""
    seed: int = 0
    """of actions, prompts and minibatches; and of the GPT-2's weights"""
    updates: int | None = None
    """rollouts to learn from, each of 512 episodes side by side; None: as ``UPDATES`` has it"""
    run_dir: Path | None = None
    """folder for config.json and summary.json; None writes nothing"""
    overwrite: bool = False
    """throw away a finished run in that folder"""

    def __post_init__(self) -> None:
        if not self.envs:
            raise ValueError("envs must name an environment, received none")
        if self.updates is not None and self.updates < 1:
            raise ValueError(f"updates must be at least 1, received {self.updates}")

    @property
    def algorithms(self) -> tuple[Paper, ...]:
        """What is trained with."""
        return ALGORITHMS if self.algorithm == "all" else (self.algorithm,)


def main(config: ExactGapConfig) -> dict[str, Any]:
    """Train on every environment, and leave the summary in the run directory if there is one.

    Returns:
        The summary, one flat object.

    Raises:
        RunDirError: if the run directory cannot be used.
        gymnasium.error.Error: if an id is unknown.
    """
    torch.set_num_threads(1)  # the arrays are small: a second thread costs more than it brings
    return measured(partial(measure, config), asdict(config), script="exact_gap")


def measure(config: ExactGapConfig) -> dict[str, Any]:
    """Train on every environment and print a line for each; the summary, one flat object.

    Its keys are ``{algorithm}_{environment}_{figure}``, ``{algorithm}_gap_worst`` of an algorithm's environments, and
    ``gap_worst`` of all.
    """
    summary: dict[str, Any] = {"policy": config.policy, "algorithm": config.algorithm, "seed": config.seed}
    if config.policy == "dialogue":
        return summary | measure_dialogues(config.algorithms, seed=config.seed, updates=config.updates)
    columns = f"{'start':>9}{'attained':>10}{'optimum':>9}{'KL':>7}{'of best':>9}{'gap %':>8}{'s':>7}"
    print(f"{'algorithm':21}{'environment':28}{columns}")
    for algorithm in config.algorithms:
        gaps = []
        for env_id in config.envs:
            result = TRAINERS[config.policy](env_id, algorithm, seed=config.seed, updates=config.updates)
            print(
                f"{algorithm:21}{env_id:28}{result.start:9.4f}{result.attained:10.4f}{result.optimum:9.4f}"
                f"{result.kl:7.3f}{result.optimal_kl:9.3f}{100 * result.gap:8.3f}{result.train_s:7.1f}",
                flush=True,
            )
            name = f"{algorithm}_{env_id.removeprefix('textenvs/').removesuffix('-v0')}"
            summary |= {f"{name}_{key}": value for key, value in asdict(result).items()}
            gaps.append(result.gap)
        summary[f"{algorithm}_gap_worst"] = max(gaps)
    summary["gap_worst"] = max(summary[f"{algorithm}_gap_worst"] for algorithm in config.algorithms)
    summary["wall_s"] = sum(value for key, value in summary.items() if key.endswith("_train_s"))
    return summary


command_line = command(ExactGapConfig, main, __doc__, show=False)
