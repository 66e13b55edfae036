"""What runs at ``textenvs guess``: random play, supervised learning on it, and PPO or GRPO on `GuessTheNumber`."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

import textenvs  # noqa: F401 (registers the ids)
from agents import GRPO, PPO
from agents.functional.schedules import Linear
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.recipes.commands.guess import GuessConfig
from agents.recipes.games.teaching import taught, word_tokenizer
from agents.runs.run_dir import measured
from agents.text.collector import TextCollector
from textenvs.dialogues.guess import GuessTheNumber

MOST, ROW_TOKENS, TURN_TOKENS = 16, 12, 10
NUMBERS = [str(number) for number in range(1, MOST + 1)]
WORDS = ["<end>", *["guess", "a", "number", "from", "to", ":", "higher", "lower", "right", "say"], *NUMBERS]
TAUGHT, LEARNED, PLAYED = 6, 8, 16
"""Turns of a game in supervised learning, in training, and in the measurement."""
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"lam": 0.5, "minibatch_size": 64, "epochs": 2, "entropy_coef": 0.003},
    "grpo": {"group_size": 8, "minibatch_size": 64, "epochs": 1, "kl_in": "reward", "entropy_coef": 0.01},
}


def main(config: GuessConfig) -> dict[str, Any]:
    """Teach, train and measure; returns the summary, one flat object: mean guesses and CPU seconds."""
    torch.set_num_threads(1)
    return measured(partial(measure, config), vars(config), script="guess")


def measure(config: GuessConfig) -> dict[str, Any]:
    """As `main`, without a folder."""
    tokenizer, ppo = word_tokenizer(WORDS), config.algorithm == "ppo"
    draw = np.random.default_rng(config.seed)
    policy = taught(
        games(tokenizer, 512, TAUGHT),
        lambda rows: torch.from_numpy(draw.integers(len(WORDS) - MOST, len(WORDS), len(rows))),
        config.seed,
        critic="shared" if ppo else "none",
        answers=True,
    )
    summary: dict[str, Any] = {"start_guesses": guesses(policy, tokenizer)}
    settings = SETTINGS[config.algorithm] | {"credit": config.credit, "learning_rate": Linear(1e-3, 0.0)}
    envs = games(tokenizer, 256, LEARNED, group_size=settings.get("group_size", 1))
    agent: Any = (PPO if ppo else GRPO)(envs, policy=policy, seed=config.seed, **settings)
    began, cpu_began = time.perf_counter(), time.process_time()
    agent.learn(config.games)
    summary |= {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu_began}
    greedy = guesses(policy, tokenizer, deterministic=True)
    return summary | {"guesses": guesses(policy, tokenizer), "guesses_greedy": greedy}


def games(tokenizer: PreTrainedTokenizerFast, number: int, turns: int, *, group_size: int = 1) -> Any:
    """``number`` games side by side, of at most so many ``turns``, each of two tokens."""
    env = partial(GuessTheNumber, MOST, bit_reward=0.25)
    limits: dict[str, Any] = {"max_turns": turns, "max_turn_tokens": 2, "max_tokens": ROW_TOKENS + TURN_TOKENS * turns}
    return gym.make_vec(
        "textenvs/Dialogue-v0", num_envs=number, env=env, tokenizer=tokenizer, group_size=group_size, **limits
    )


def guesses(policy: CausalLMPolicy, tokenizer: PreTrainedTokenizerFast, *, deterministic: bool = False) -> float:
    """Mean guesses over 512 games, the same ones each time; games that are not won count as all their turns."""
    collector = TextCollector(
        games(tokenizer, 512, PLAYED), seed=12_345, generate=partial(generate, deterministic=deterministic)
    )
    collector.collect(policy)
    rows = collector.last
    assert rows is not None
    assert rows.turns is not None
    played = np.where(rows.stop_reason == "terminated", rows.turns.max(axis=1) + 1, PLAYED)
    return float(played.mean())
