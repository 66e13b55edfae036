"""What runs at ``textenvs arena``: random play of a TextArena game, supervised learning on it, and PPO on the game."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

import textenvs  # noqa: F401 (registers the ids)
from agents import PPO
from agents.functional.schedules import Linear
from agents.lm.generation import generate
from agents.recipes.commands.arena import ArenaConfig
from agents.recipes.games.teaching import at_random, taught, word_tokenizer
from agents.runs.flags import json_object
from agents.runs.run_dir import measured
from agents.text.collector import TextCollector
from textenvs.tasks.text_arena import TextArenaGame, legal_moves


def main(config: ArenaConfig) -> dict[str, Any]:
    """Teach, train and measure; returns the summary, one flat object: mean rewards and shares of games won."""
    torch.set_num_threads(1)
    return measured(partial(measure, config), vars(config), script="arena")


def measure(config: ArenaConfig) -> dict[str, Any]:
    """As `main`, without a folder."""
    settings = json_object(config.settings, "settings")
    game = TextArenaGame(config.task, settings, opponent=config.opponent)
    draw = random.Random(config.seed)
    rules = game.reset(seed=0)[0].split()

    def move(text: str) -> str:
        """A random one of the moves that a game's ``text`` so far lists; if it lists none, of those not yet said."""
        said = text.split()
        fresh = [each for each in config.moves if said.count(each) <= rules.count(each)]
        moves = legal_moves(text) or fresh
        if not moves:
            raise ValueError(f"task {config.task}: expected a game that lists its legal moves, or --moves")
        return draw.choice(moves).strip("[]")

    written = [random_game(game, move, seed) for seed in range(200)]
    listed = {each.strip("[]") for text in written for each in legal_moves(text)}
    known = ["<end>", *sorted({word for text in written for word in text.split()} | listed | {*config.moves})]
    tokenizer, positions = word_tokenizer(known), max(len(text.split()) for text in written) + 96
    task: dict[str, Any] = {"task": config.task, "settings": settings, "opponent": config.opponent}
    limits: dict[str, Any] = {"max_turns": 32, "max_turn_tokens": 2, "max_tokens": positions}
    make = partial(gym.make_vec, "textenvs/TextArena-v0", tokenizer=tokenizer, **task, **limits)

    def legal(rows: Tensor) -> Tensor:
        """The token of a random move in each of ``rows [K, L]``."""
        texts = tokenizer.batch_decode(rows.clamp(min=0), skip_special_tokens=True)
        return torch.tensor([known.index(move(text)) for text in texts])

    return learned(make, legal, config, positions)


def learned(
    make: Callable[..., Any], legal: Callable[[Tensor], Tensor], config: ArenaConfig, positions: int
) -> dict[str, Any]:
    """What playing came to, at random, after teaching, and after training."""
    began = time.process_time()
    policy = taught(make(num_envs=512), legal, config.seed, critic="shared", positions=positions, minibatch_size=16)
    summary: dict[str, Any] = {"taught_cpu_s": time.process_time() - began}

    def played(name: str, **options: Any) -> None:
        collector = TextCollector(make(num_envs=512), seed=12_345, **options)
        rewards = collector.collect(policy)[0].rewards.sum(dim=1)
        summary[f"{name}_reward"], summary[f"{name}_won"] = float(rewards.mean()), float((rewards == 1).float().mean())

    played("random", generate=partial(at_random, legal))
    played("taught")
    began = time.process_time()
    learning: dict[str, Any] = {"credit": "turn", "lam": 0.95, "minibatch_size": 64, "epochs": 2, "entropy_coef": 0.01}
    agent = PPO(make(num_envs=128), policy=policy, seed=config.seed, learning_rate=Linear(1e-3, 0.0), **learning)
    agent.learn(config.games)
    summary["cpu_s"] = time.process_time() - began
    played("trained")
    played("greedy", generate=partial(generate, deterministic=True))
    return summary


def random_game(game: TextArenaGame, move: Callable[[str], str], seed: int) -> str:
    """All that a game writes, and the moves between."""
    text, over = game.reset(seed=seed)[0], False
    while not over:
        chosen = move(text)
        news, _, over, _, _ = game.step(chosen)
        text = f"{text}\n{chosen}\n{news}"
    return text
