"""Guess a number from 1 to 16: a small GPT-2 that has seen random play learns to halve what is left.

    python -m scripts.guess --algorithm ppo --credit turn --seed 0

Halving wins after 3.375 guesses on average. The model is taught the form of a game by supervised learning on random
play (every number equally likely at every turn), answers of the game included, so that it learns what they say about
the number; and then trained on the game itself, where each wrong guess costs 0.1 and each bit that a guess tells on
average is worth 0.25, which leaves the best play as it is. A game that is not won in 16 guesses counts as 16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from agents import GRPO, PPO
from agents.algorithms.text import TextAlgorithm
from agents.functional.schedules import Linear
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decoder import Generation
from agents.lm.dialogues import Dialogue, Rows
from agents.lm.generation import generate
from agents.runs.cli import command
from agents.runs.run_dir import measured
from agents.text.collector import TextCollector
from scripts.benchmarks.text.models import word_tokenizer
from textenvs.dialogues.guess import GuessTheNumber
from textenvs.lm.packed_forward import pack_rows
from textenvs.tokens.rows import PAD

MOST, ROW_TOKENS, TURN_TOKENS = 16, 12, 10
NUMBERS = [str(number) for number in range(1, MOST + 1)]
WORDS = ["<end>", *["guess", "a", "number", "from", "to", ":", "higher", "lower", "right", "say"], *NUMBERS]
TAUGHT, LEARNED, PLAYED = 6, 8, 16
"""Turns of a game in supervised learning, in training, and in the measurement."""
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"lam": 0.5, "minibatch_size": 64, "epochs": 2, "entropy_coef": 0.003},
    "grpo": {"group_size": 8, "minibatch_size": 64, "epochs": 1, "kl_in": "reward", "entropy_coef": 0.01},
}


@dataclass(frozen=True, kw_only=True)
class GuessConfig:
    """Settings of the run."""

    algorithm: Literal["ppo", "grpo"] = "ppo"
    """what trains"""
    credit: Literal["token", "turn", "state"] = "turn"
    """of an action: see ``TextAgentConfig``"""
    games: int = 49_152
    """played in training"""
    seed: int = 0
    """of weights, games and minibatches"""
    run_dir: Path | None = None
    """folder for config.json and summary.json; None writes nothing"""
    overwrite: bool = False
    """throw away a finished run in that folder"""


def main(config: GuessConfig) -> dict[str, Any]:
    """Teach, train and measure; returns the summary, one flat object: mean guesses and share of games won."""
    torch.set_num_threads(1)
    return measured(partial(measure, config), asdict(config), script="guess")


def measure(config: GuessConfig) -> dict[str, Any]:
    """As `main`, without a folder."""
    tokenizer = words(WORDS)
    draw = np.random.default_rng(config.seed)
    policy = taught(
        games(tokenizer, 512, TAUGHT),
        lambda rows: torch.from_numpy(draw.integers(len(WORDS) - MOST, len(WORDS), len(rows))),
        config.seed,
        critic="shared" if config.algorithm == "ppo" else "none",
        answers=True,
    )
    summary: dict[str, Any] = {"start_guesses": guesses(policy, tokenizer)}
    algorithm: type[TextAlgorithm] | type[PPO] = PPO if config.algorithm == "ppo" else GRPO
    settings = SETTINGS[config.algorithm]
    envs = games(tokenizer, 256, LEARNED, group_size=settings.get("group_size", 1))
    agent: Any = algorithm(
        envs, policy=policy, seed=config.seed, credit=config.credit, learning_rate=Linear(1e-3, 0.0), **settings
    )
    began, cpu_began = time.perf_counter(), time.process_time()
    agent.learn(config.games)
    summary |= {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu_began}
    return summary | {
        "guesses": guesses(policy, tokenizer),
        "guesses_greedy": guesses(policy, tokenizer, deterministic=True),
    }


def words(known: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of a game's words; the first ends a turn."""
    return word_tokenizer([*known], len(known), eos_token=known[0], unk_token=known[0])


def games(tokenizer: PreTrainedTokenizerFast, number: int, turns: int, *, group_size: int = 1) -> Any:
    """``number`` games side by side, of at most so many ``turns``, each of two tokens."""
    return gym.make_vec(
        "textenvs/Dialogue-v0",
        num_envs=number,
        env=partial(GuessTheNumber, MOST, bit_reward=0.25),
        tokenizer=tokenizer,
        max_turns=turns,
        max_turn_tokens=2,
        max_tokens=ROW_TOKENS + TURN_TOKENS * turns,
        group_size=group_size,
    )


def taught(
    envs: Any,
    choose: Callable[[Tensor], Tensor],
    seed: int,
    *,
    critic: str,
    positions: int = 192,
    minibatch_size: int = 32,
    answers: bool = False,
) -> CausalLMPolicy:
    """A GPT-2 of 2 layers by 64 that has learned from 12 times the games of ``envs``, played by `at_random`.

    With ``answers`` from whole rows, what the environment writes included.
    """
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": envs.vocab_size, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=positions, bos_token_id=0, eos_token_id=0))
    policy = CausalLMPolicy(model, critic=critic)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    collector = TextCollector(envs, seed=seed, generate=partial(at_random, choose))
    for _ in range(12):
        rollout, _ = collector.collect(policy)
        rows = pack_rows(rollout.observations, rollout.actions)
        for part in torch.randperm(envs.num_envs).split(minibatch_size):
            mask = rows[part] != PAD if answers else rollout.mask[part]
            if answers:
                mask[:, 0] = False  # nothing precedes it
                logprobs = policy.row_logprobs(rows[part], mask)
            else:
                logprobs = policy.evaluate(rollout.observations[part], rollout.actions[part], mask).logprobs[mask]
            optimizer.zero_grad()
            (-logprobs.mean()).backward()
            optimizer.step()
    return policy


def at_random(
    choose: Callable[[Tensor], Tensor], policy: object, prompts: Tensor, *, dialogue: Dialogue, **options: Any
) -> Generation:
    """A token that ``choose`` takes for each row ``[K, L]``, and the end of the turn, again and again.

    Arguments as ``agents.lm.generation.generate``.
    """
    lengths = (prompts != PAD).sum(1)
    rows = Rows(dialogue, lengths, dialogue.max_tokens - 1, max_turn_tokens=2, ends=torch.tensor([0]))
    while not bool(rows.ended.all()):
        running = (~rows.ended).nonzero()[:, 0]
        chosen = choose(pack_rows(prompts[running], rows.tokens[running]))
        rows.append(running, torch.where(rows.in_turn[running] > 0, 0, chosen))
    nothing = torch.zeros(rows.tokens.shape)
    return Generation(rows.tokens, nothing, nothing)


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


command_line = command(GuessConfig, main, __doc__)
