"""The optimality gap of each algorithm on enumerable text problems, whose best policy is known.

    python -m scripts.exact_gap                                    PPO on a table of logits
    python -m scripts.exact_gap --algorithm all                    each of ``agents.text.config.PAPERS``
    python -m scripts.exact_gap --algorithm grpo --policy gpt2     a tiny GPT-2, by whole texts
    python -m scripts.exact_gap --policy dialogue --algorithm all  a table of dialogues, by token, turn and state

The gap is (optimum - attained) / (optimum - start) of the objective ``E[score] - beta KL(pi || pi_ref)``, all three by
enumeration: no sampling enters the measurement. The start is the reference, as in the tuning of a language model: the
table starts as the task's own, the GPT-2 as itself before training. 0 % is optimal, 100 % has learned nothing.

Two policies: a table that can represent any policy, so that a remaining gap is due to the algorithm; and a tiny GPT-2.
The KL coefficient is annealed: at a constant one, training collapses to one of the best policy's modes. The KL is a
penalty in the reward, as in the objective (a KL in the loss, as in GRPO's paper, is biased: ``scripts.kl_bias``).

Dialogues are of a table of every state, neither of the objectives sampled either. PPO learns where the limit of turns
ends the game and where it truncates it; algorithms without a critic only where it ends it, since nothing tells them
what a truncated dialogue would bring.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import textenvs  # noqa: F401 (registers the ids)
from agents.agent import Agent
from agents.algorithms.ppo import PPO
from agents.functional.schedules import Linear
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.ranges import check_values
from agents.runs.cli import command
from agents.runs.run_dir import measured
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import Paper, TextAgentConfig
from agents.text.kl_controllers import AnnealedKL
from agents.text.stepwise import generate_by_acting
from agents.verification.exact.settings import (
    ALGORITHMS,
    ANNEALED,
    DIALOGUES,
    ENVS,
    NUM_ENVS,
    PPO_TABLE,
    SETTINGS,
    UPDATES,
)
from agents.verification.exact.tabular import Table, TabularDialoguePolicy, TabularPolicy, TabularTextPolicy
from textenvs.envs.wrapper import found_in
from textenvs.exact import enumeration as exact
from textenvs.exact.dialogues import DialogueTask
from textenvs.exact.envs import EOS_TOKEN, ExactTask
from textenvs.tokens.rows import Ids
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.reference import CausalLMReference


@dataclass(frozen=True, kw_only=True)
class GapResult:
    """One training and its distance from the optimum."""

    gap: float  # share of (optimum - start) that is still to go
    start: float  # objective of the reference, reward units
    attained: float  # objective of the trained policy, reward units
    optimum: float  # objective of the best policy, reward units
    kl: float = math.nan  # of the trained policy, nats per sequence; NaN of dialogues
    optimal_kl: float = math.nan  # of the best policy, nats per sequence; NaN of dialogues
    train_s: float  # seconds of training


def train(
    policy: str,
    env_id: str,
    algorithm: Paper = "ppo",
    *,
    credit: str = "token",
    seed: int = 0,
    updates: int | None = None,
    num_envs: int | None = None,
) -> GapResult:
    """Train what starts as the reference, by whole texts or dialogues; PPO's table of texts by steps.

    ``policy`` is "tabular", "gpt2" or "dialogue", whose ``credit`` is as in `TextAgentConfig`; ``updates`` are rollouts
    to learn from, None: ``UPDATES``; ``num_envs`` episodes side by side, None: ``NUM_ENVS``, are a multiple of the
    group size.
    """
    number = UPDATES[policy][algorithm] if updates is None else updates
    if (policy, algorithm) == ("tabular", "ppo"):
        return _train_by_steps(env_id, seed, number, num_envs or NUM_ENVS["stepped"])
    num_envs = num_envs or NUM_ENVS[policy]
    asked: dict[str, Any] = {"minibatch_size": num_envs, "max_grad_norm": 1.0, "kl_in": "reward", "kl_estimator": None}
    asked |= SETTINGS[policy][algorithm] | {"credit": credit, "seed": seed}
    config = TextAgentConfig.for_algorithm(
        algorithm, **(asked | {"learning_rate": Linear(asked["learning_rate"], 0.0)})
    )
    model = tiny_gpt2(env_id, seed=seed) if policy == "gpt2" else None
    reference: dict[str, Any] = {} if model is None else {"reference": CausalLMReference(model)}
    envs = gym.make_vec(env_id, num_envs=num_envs, group_size=config.group_size, **reference)
    task: ExactTask | DialogueTask = envs.unwrapped.task  # type: ignore[attr-defined]
    how: dict[str, Any] = {"generate": generate_by_acting, "dynamic_sampling": config.dynamic_sampling}
    if policy in ANNEALED:
        how["kl_controller"] = _annealed(policy, task.beta, number * num_envs)
    learner: Any
    if isinstance(task, DialogueTask):
        config = replace(config, gamma_turn=task.gamma_turn) if algorithm == "ppo" else config
        learner = TabularDialoguePolicy(task, eos_token_id=EOS_TOKEN, has_critic=config.uses_critic)
    elif model is None:
        logits, width = task.ref_logprobs.reshape(-1, len(task.words)), task.prompts.shape[1]
        learner = TabularTextPolicy(task.states, logits, prompt_length=width, eos_token_id=EOS_TOKEN)
    else:
        learner = CausalLMPolicy(model, eos_token_id=EOS_TOKEN, critic="shared" if config.uses_critic else "none")
        how["generate"] = generate
    agent = TextAgent(config, policy=learner, collector=TextCollector(envs, seed=seed, **how))
    return _learn(agent, learner, task, number * num_envs)


def _train_by_steps(env_id: str, seed: int, updates: int, num_envs: int) -> GapResult:
    policy: Any = None
    envs = gym.make_vec(env_id, num_envs=num_envs, acting=lambda *asked: policy.acting(*asked))
    task: ExactTask = envs.unwrapped.task  # type: ignore[attr-defined]
    num_actions = len(task.words)
    policy = TabularPolicy(task.states, num_actions, task.ref_logprobs.reshape(-1, num_actions))
    agent = PPO(envs, replace(PPO_TABLE, seed=seed), policy=policy)
    steps = num_envs * PPO_TABLE.num_steps
    controller = _annealed("tabular", task.beta, updates * steps)

    def anneal(_: Agent) -> None:
        shaping.beta = controller.updated(shaping.beta, 0.0, steps)

    shaping: Any = found_in(envs, KLShaping)
    shaping.beta = controller.start
    return _learn(agent, policy, task, updates * steps, anneal)


def _annealed(policy: str, beta: float, horizon: int) -> AnnealedKL:
    """To ``beta``, in a share of ``horizon`` episodes or steps."""
    multiple, share = ANNEALED[policy]
    return AnnealedKL(start=multiple * beta, end=beta, horizon=share * horizon)


def tiny_gpt2(env_id: str, *, seed: int) -> PreTrainedModel:
    """A GPT-2 of 2 layers by 64 for a task's words, whose random weights give a non-uniform distribution."""
    vocab_size = len(gym.make_vec(env_id, num_envs=1).unwrapped.task.words)  # type: ignore[attr-defined]
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "n_positions": 8, "n_embd": 64, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, initializer_range=0.1, bos_token_id=EOS_TOKEN, eos_token_id=EOS_TOKEN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def _learn(
    agent: Agent, policy: Any, task: ExactTask | DialogueTask, total_steps: int, callback: Any = None
) -> GapResult:
    began = time.perf_counter()
    agent.learn(total_steps, callback=callback)
    train_s = time.perf_counter() - began
    if isinstance(policy, Table):
        trained = policy.logits[:-1].detach().double().log_softmax(-1).numpy().reshape(task.ref_logprobs.shape)
    else:
        assert isinstance(task, ExactTask)
        trained = exact.tabulate(task.tree, task.prompts, partial(_logprobs, policy))
    found: dict[str, float]
    if isinstance(task, DialogueTask):
        tables = {"start": task.ref_logprobs, "attained": trained, "optimum": task.optimum}
        found = {name: task.objective(table) for name, table in tables.items()}
    else:
        outcomes = {"start": task.start, "attained": task.outcome(trained), "optimum": task.best}
        found = {name: outcome.mean_objective for name, outcome in outcomes.items()}
        found |= {"kl": float(outcomes["attained"].kl.mean()), "optimal_kl": float(task.best.kl.mean())}
    return GapResult(gap=task.gap(trained), train_s=train_s, **found)


@torch.no_grad()
def _logprobs(policy: CausalLMPolicy, prompts: Ids, completions: Ids) -> np.ndarray:
    return policy.evaluate(torch.from_numpy(prompts), torch.from_numpy(completions)).logprobs.numpy()


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
    """rollouts to learn from; None: as ``UPDATES`` has it"""
    run_dir: Path | None = None
    """folder for config.json and summary.json; None writes nothing"""
    overwrite: bool = False
    """throw away a finished run in that folder"""

    def __post_init__(self) -> None:
        if not self.envs:
            raise ValueError("envs must name an environment, received none")
        check_values(self, {">= 1": "updates"})

    @property
    def cases(self) -> list[tuple[str, Paper, str]]:
        """Environments, algorithms and credits, one after the other."""
        algorithms = ALGORITHMS if self.algorithm == "all" else (self.algorithm,)
        texts = [(env_id, algorithm, "token") for algorithm in algorithms for env_id in self.envs]
        return [case for case in DIALOGUES if case[1] in algorithms] if self.policy == "dialogue" else texts


def main(config: ExactGapConfig) -> dict[str, Any]:
    """Train on every environment, and leave the summary, one flat object, in the run directory if there is one."""
    torch.set_num_threads(1)  # the arrays are small: a second thread costs more than it brings
    return measured(partial(measure, config), asdict(config), script="exact_gap")


def measure(config: ExactGapConfig) -> dict[str, Any]:
    """Train on every environment and print a line for each; the summary, one flat object.

    Its keys are ``{algorithm}_{environment}_{figure}``, of dialogues ``{algorithm}_{credit}_{environment}_{figure}``,
    ``{algorithm}_gap_worst`` of an algorithm's environments, and ``gap_worst`` of all.
    """
    summary: dict[str, Any] = {"policy": config.policy, "algorithm": config.algorithm, "seed": config.seed}
    worst: dict[str, float] = {}
    columns = f"{'start':>9}{'attained':>10}{'optimum':>9}{'KL':>7}{'of best':>9}{'gap %':>8}{'s':>7}"
    print(f"{'algorithm':21}{'credit':7}{'environment':33}{columns}")
    for env_id, algorithm, credit in config.cases:
        result = train(config.policy, env_id, algorithm, credit=credit, seed=config.seed, updates=config.updates)
        nats = "".join(f"{value:{width}.3f}" for value, width in ((result.kl, 7), (result.optimal_kl, 9)))
        objectives = f"{result.start:9.4f}{result.attained:10.4f}{result.optimum:9.4f}"
        figures = f"{objectives}{nats}{100 * result.gap:8.3f}{result.train_s:7.1f}"
        print(f"{algorithm:21}{credit:7}{env_id:33}{figures}", flush=True)
        name = f"{algorithm}_{credit}" if config.policy == "dialogue" else algorithm
        name += "_" + env_id.removeprefix("textenvs/").removesuffix("-v0")
        summary |= {f"{name}_{key}": value for key, value in asdict(result).items() if not math.isnan(value)}
        worst[algorithm] = max(worst.get(algorithm, result.gap), result.gap)
    summary |= {f"{algorithm}_gap_worst": gap for algorithm, gap in worst.items()}
    summary["gap_worst"] = max(worst.values())
    summary["wall_s"] = sum(value for key, value in summary.items() if key.endswith("_train_s"))
    return summary


command_line = command(ExactGapConfig, main, __doc__, show=False)
