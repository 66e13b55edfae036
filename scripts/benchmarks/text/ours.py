"""One configuration of our text algorithms at the benchmark's sizes: updates, and the seconds of their parts.

    python -m scripts.bench_text_ours --updates 5
    python -m scripts.bench_text_ours --algorithm grpo --updates 5
    python -m scripts.bench_text_ours --mean-length 24 --dtype bfloat16 --profile

`scripts.benchmark_text` runs it beside the peers with ``--on-demand``: one update for each line on standard input.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.policy_reference import PolicyReference
from agents.runs.cli import command
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import TextAgentConfig
from reward_models import RewardModel
from scripts.benchmarks.text.models import LM, PROMPTS, REWARD_MODEL, BenchSizes, write_models
from textenvs.envs.vector import TokenVectorEnv
from textenvs.lm.loading import load_causal_lm
from textenvs.tokens.tokenizers import load_tokenizer
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward


@dataclass(frozen=True, kw_only=True)
class BenchOursConfig:
    """Time our updates."""

    algorithm: Literal["ppo", "grpo"] = "ppo"
    """What is trained."""
    critic: Literal["shared", "separate"] = "shared"
    """PPO's value head: on the policy's trunk, or on a copy of it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of matrix products (autocast)."""
    mean_length: float | None = None
    """Mean tokens of a completion; the end-of-text token is made that likely. None: none ends before its budget."""
    max_concurrent_rows: int | None = None
    """Texts written at a time; a text that ended makes room for the next. None: all at once."""
    models: Path | None = None
    """Folder that `write_models` filled. None: written anew for this run."""
    updates: int = 5
    """Timed updates, after one that is not."""
    threads: int = 2
    """CPU threads of torch."""
    profile: bool = False
    """Show where the time of one more update goes, by operation."""
    on_demand: bool = False
    """One update for each line on standard input, told as a line of JSON on standard output."""
    sizes: BenchSizes = field(default_factory=BenchSizes)
    """Shapes."""


def build_agent(config: BenchOursConfig, folder: Path) -> TextAgent:
    """The agent that the configuration describes, on the models in ``folder``."""
    sizes, ppo = config.sizes, config.algorithm == "ppo"
    autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
    tokenizer = load_tokenizer(folder / LM)
    critic = config.critic if ppo else "none"
    policy = CausalLMPolicy(load_causal_lm(folder / LM), critic=critic, autocast=autocast)
    own: dict[str, Any] = {"lam": 0.95, "value_coef": 0.1} if ppo else {"group_size": sizes.group_size}
    own |= {"epochs": sizes.epochs, "minibatch_size": sizes.rows // sizes.minibatches, "learning_rate": 1e-6}
    settings = TextAgentConfig.for_algorithm(config.algorithm, **own)
    base = TokenVectorEnv(
        sizes.rows, prompts=json.loads((folder / PROMPTS).read_text()), tokenizer=tokenizer,
        eos_token_id=policy.eos_token_id, max_new_tokens=sizes.new_tokens, group_size=settings.group_size,
    )  # fmt: skip
    scorer: Any = RewardModel.load(folder / REWARD_MODEL) if ppo else length_modulo_seven
    start = CausalLMPolicy(load_causal_lm(folder / LM).requires_grad_(False), autocast=autocast)
    reference = PolicyReference(start, tokenizer)
    env = KLShaping(PreferenceReward(base, scorer), reference, 0.05, charge=ppo)
    collector = TextCollector(env, max_concurrent_rows=config.max_concurrent_rows)
    return TextAgent(settings, policy=policy, collector=collector)


def length_modulo_seven(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(completion) % 7) for completion in completions]


def timed_updates(agent: TextAgent) -> Iterator[dict[str, float]]:
    """An update each: ``seconds`` and those of its parts, ``cpu_s`` of all threads, and the response tokens in it."""
    while True:
        began, cpu = time.perf_counter(), time.process_time()
        agent.iterate()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        generate, score = agent.metrics["time/generate_s"], agent.metrics["time/score_s"]
        assert agent.collector is not None
        assert agent.collector.last is not None
        figures = {"seconds": seconds, "cpu_s": cpu, "response_tokens": float(agent.collector.last.mask.sum())}
        yield figures | {"generate_s": generate, "score_s": score, "update_s": seconds - generate - score}


def main(config: BenchOursConfig) -> dict[str, Any]:
    """Run it; medians over the timed updates."""
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = config.models or write_models(Path(scratch), config.sizes, mean_length=config.mean_length)
        agent = build_agent(config, folder)
    updates = timed_updates(agent)
    if config.on_demand:
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(next(updates)), flush=True)
        return {}
    next(updates)
    timed = [next(updates) for _ in range(config.updates)]
    if config.profile:
        with torch.profiler.profile() as profile:
            next(updates)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=45))
    summary = {name: statistics.median(update[name] for update in timed) for name in timed[0]}
    summary["response_tokens_per_s"] = statistics.median(u["response_tokens"] / u["seconds"] for u in timed)
    return summary


command_line = command(BenchOursConfig, main, __doc__)
