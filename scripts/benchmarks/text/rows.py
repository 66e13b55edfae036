"""The rows of `scripts.benchmark_text` that are no speeds: memory, gaps, movie reviews, the KL, TRL's learning.

Every one reads the summary of another script's run, which lies in a folder of its own and is kept if it is finished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.curve import FRONTIER, read_points
from agents.functional.schedules import value_at
from agents.recipes.rlhf.config import TrainTextConfig
from agents.runs.run_dir import SUMMARY
from agents.text.config import Paper
from reward_models.aside import write_aside, write_json
from scripts.benchmarks.processes import run_once, run_process
from scripts.benchmarks.table import Row, row_of
from scripts.benchmarks.text.models import LM, PROMPTS, REWARD_MODEL
from scripts.benchmarks.text.peer_environments import peer_command, quiet_environment
from textenvs import assets

ALGORITHMS = ("ppo", "grpo", "rloo", "reinforce")
POLICIES = ("tabular", "gpt2")
"""Whose gap is measured: a table can represent the optimum, so that its gap is the algorithm's alone."""
SHIPPED_PARAMETERS = 2_400_000
"""Of the shipped language model: they decide the preset's learning rate."""
KL_BUDGET = 8.0
"""Nats per sequence; a text model further away from where it began has won nothing."""
SAME_AS_PEER: dict[str, dict[str, str]] = {
    "ppo": {"memory": "full", "critic_start": "reward-model"},
    "grpo": {"kl_in": "loss", "kl_estimator": "k2"},
}
"""Settings of what TRL has. Its PPO draws no branches, and its critic is a trunk of its own, which starts as the reward
model here; its GRPO has the KL in the loss: k3 times the ratio of probabilities, whose gradient is k2's where that is
1."""
KL_POINT = 3.2
"""Nats per sequence where gains are compared; best-of-64 is at most 3.17 from the start."""
KL_SETTINGS = (
    "--beta", 0.235, "--branches", 8, "--batch-size", 512, "--minibatch-size", 128, "--learning-rate", "2e-4:0",
    "--episodes", 32768, "--evaluate-every", 16,
)  # fmt: skip
"""Flags of a PPO that ends near there: the preset with a higher price, smaller steps and more texts."""


def memory_row(runs: Path, *, threads: int) -> Row:
    """Peak memory of training beyond one trunk's own weights, 135M parameters: adapters beside full."""
    found = run_once(runs / "memory", ["scripts.benchmark_memory"], threads=threads)
    measured = ("adapters_beyond_trunk", "full_beyond_trunk", "trunk")
    ours, peer, trunk = (found[f"{name}_bytes"] / 2**20 for name in measured)
    name, details = "peak memory beyond the trunk's weights, 135M model: adapters ÷ full", {"trunk_mib": trunk}
    return Row(name=name, ours=ours, peer=peer, unit="MiB", must=1 / 4, aim=1 / 8, at_most=True, details=details)


def gap_row(runs: Path, algorithm: str, policy: str, *, seeds: int) -> Row:
    """Optimality gap of an algorithm on a table or a tiny GPT-2, exactly: its worst environment's, mean over seeds.

    Ours is what is missing to the optimum, the peer what the start was missing, both as shares of the latter.
    """
    flags = ["scripts.exact_gap", "--policy", policy, "--algorithm", algorithm]
    found = [run_once(runs / f"gap-{policy}-{algorithm}-{seed}", [*flags, "--seed", seed]) for seed in range(seeds)]
    gaps = [summary["gap_worst"] for summary in found]
    by_environment = {
        name: float(np.mean([summary[name] for summary in found])) for name in found[0] if name.endswith("_gap")
    }
    name = f"optimality gap, {algorithm}, {policy}: missing to the optimum ÷ missing at the start, worst environment"
    return row_of(name, "share", {"ours": gaps}, peer=1.0, must=0.03, aim=0.01, at_most=True, details=by_environment)


def tuned(folder: Path, flags: Sequence[object], seed: int, *, threads: int) -> dict[str, Any]:
    """The summary of our preset on movie reviews, with further flags."""
    return run_once(folder, ["scripts.train_text", *flags, "--seed", seed], threads=threads)


def reviews_row(runs: Path, algorithm: str, *, seeds: int, threads: int) -> Row:
    """How often the judge prefers what was tuned on movie reviews to what it was before, mean over seeds.

    A seed that ends beyond the KL budget counts as 0.
    """
    flags = ["--algorithm", algorithm]
    found = [tuned(runs / f"reviews-{algorithm}-{seed}", flags, seed, threads=threads) for seed in range(seeds)]
    rates = [s["judge_win_rate"] if s["kl_per_sequence"] <= KL_BUDGET else 0.0 for s in found]
    name = f"movie reviews, {algorithm}: judge prefers the tuned model at ≤ {KL_BUDGET:.0f} nats ÷ all texts"
    details = _figures("ours", found)
    return row_of(name, "share", {"ours": rates}, peer=1.0, must=0.75, aim=0.85, details=details)


def kl_row(runs: Path, *, seeds: int, threads: int) -> Row:
    """What PPO gains in reward-model score within `KL_POINT` nats, beside what best-of-64 gains; mean over seeds.

    A run's figure is that of its last evaluation within the point; both gains are over the mean score of what the start
    writes.
    """
    best = run_once(runs / "best_of_n", ["scripts.best_of_n"], threads=threads)
    start = best["score_best_of_1"]
    found: list[dict[str, Any]] = []
    for seed in range(seeds):
        folder = runs / f"kl-{seed}"
        tuned(folder, KL_SETTINGS, seed, threads=threads)
        points: list[dict[str, Any]] = read_points(folder / FRONTIER)  # the start's KL is 0
        found.append([point for point in points if point["kl_per_sequence"] <= KL_POINT][-1])
    gains = {"ours": [point["score"] - start for point in found]}
    details = {f"ours_{name}_by_seed": [point[name] for point in found] for name in ("kl_per_sequence", "judge")}
    details |= {"peer_kl_per_sequence": best["kl_per_sequence_best_of_64"], "peer_judge": best["judge_best_of_64"]}
    name = f"KL efficiency, ppo: gain in score within {KL_POINT} nats ÷ best-of-64's"
    return row_of(name, "reward", gains, peer=best["score_best_of_64"] - start, must=0.92, aim=1.0, details=details)


def learning_row(runs: Path, peers: Path, algorithm: Paper, *, seeds: int, threads: int) -> Row:
    """The judge's win rate of ours and of TRL's after the same texts, with the same models, reward and settings.

    ``algorithm`` is "ppo" or "grpo".
    """
    same = SAME_AS_PEER[algorithm] | {"algorithm": algorithm}
    flags = [part for name, value in same.items() for part in (f"--{name.replace('_', '-')}", value)]
    numbers = range(seeds)
    sides = {
        "ours": [tuned(runs / f"learning-{algorithm}-{seed}", flags, seed, threads=threads) for seed in numbers],
        "peer": [tuned_by_peer(runs, peers, algorithm, seed, threads=threads) for seed in numbers],
    }
    rates = {side: [summary["judge_win_rate"] for summary in found] for side, found in sides.items()}
    details = _figures("ours", sides["ours"]) | _figures("peer", sides["peer"])
    name = f"learning: judge prefers the tuned model after the same texts, {algorithm}"
    return row_of(name, "share", rates, must=1.0, details=details)


def best_of_n_row(runs: Path, *, seeds: int, threads: int) -> Row:
    """The judge's win rate of the preset's PPO beside that of the best of 64 texts by the reward model."""
    best = run_once(runs / "best_of_n", ["scripts.best_of_n"], threads=threads)
    found = [
        tuned(runs / f"reviews-ppo-{seed}", ("--algorithm", "ppo"), seed, threads=threads) for seed in range(seeds)
    ]
    rates = {"ours": [summary["judge_win_rate"] for summary in found]}
    details = _figures("ours", found) | {"peer_kl_per_sequence": best["kl_per_sequence_best_of_64"]}
    name = "learning: judge prefers the tuned model, the preset's ppo ÷ best-of-64"
    return row_of(name, "share", rates, peer=best["judge_win_rate_best_of_64"], details=details)


def _figures(side: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("judge_win_rate", "kl_per_sequence", "score_after", "distinct2_after", "mean_length_after")
    return {f"{side}_{name}_by_seed": [summary[name] for summary in found] for name in names}


def tuned_by_peer(runs: Path, peers: Path, algorithm: Paper, seed: int, *, threads: int) -> dict[str, Any]:
    """TRL's training on movie reviews with our preset's settings, compared with the start as our runs are."""
    folder = runs / f"reviews-trl-{algorithm}-{seed}"
    if (folder / SUMMARY).exists():
        return json.loads((folder / SUMMARY).read_text())
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{folder.name} ...", flush=True)
    asked: dict[str, Any] = {"run_dir": str(folder), "seed": seed, **SAME_AS_PEER[algorithm]}
    preset = TrainTextConfig.preset(algorithm, **asked).settled(SHIPPED_PARAMETERS)
    models, saved = write_review_inputs(folder / "inputs", preset), folder / "model"
    job = peer_settings(preset) | {"threads": threads, "save": str(saved.resolve())}
    command = peer_command(peers, folder, algorithm, models=models, **job)
    said = run_process(command, folder.name, env=quiet_environment(threads))
    summary = judged(saved, preset) | json.loads(said.splitlines()[-1])
    write_json(folder / SUMMARY, summary)
    return summary


def peer_settings(preset: TrainTextConfig) -> dict[str, Any]:
    """Our preset in TRL's words; lambda, gamma, the weight of the value loss and the clip are TRL's defaults, too.

    GRPO's preset is Dr. GRPO but for the KL, which is in the loss here. TRL's PPO counts tokens up to the padding,
    which no text may contain; its GRPO counts to the first end of text, and embeds the padding.
    """
    from textenvs.lm.loading import load_causal_lm

    config = load_causal_lm(assets.language_model_dir()).config
    assert preset.learning_rate is not None
    return {
        "rows": preset.batch_size,
        "minibatches": preset.batch_size // (preset.minibatch_size or preset.batch_size),
        "epochs": preset.epochs,
        "group_size": preset.group_size,
        "free_reward": False,
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "new_tokens": preset.max_new_tokens,
        "learning_rate": value_at(preset.learning_rate, 0.0),
        "kl_coef": preset.beta,
        "updates": preset.episodes // preset.batch_size,
        "seed": preset.seed,
        "pad_token_id": config.vocab_size if preset.algorithm == "ppo" else config.eos_token_id,
    }


def write_review_inputs(folder: Path, preset: TrainTextConfig) -> Path:
    """The shipped models and the preset's training prompts, laid out as `write_models` does."""
    from agents.recipes.rlhf.prompts import prompt_sets
    from textenvs.tokens.prompts import load_prompts

    tokenizer = assets.load_tokenizer()
    for name, source in ((LM, assets.language_model_dir()), (REWARD_MODEL, assets.reward_model_dir())):
        shutil.copytree(source, folder / name)
    prompts = load_prompts(prompt_sets(preset, tokenizer)[0], tokenizer, vocab_size=len(tokenizer))
    rows = [prompts.row(number).tolist() for number in range(len(prompts))]
    write_aside(folder / PROMPTS, json.dumps(rows))
    return folder


def judged(model: Path, preset: TrainTextConfig) -> dict[str, Any]:
    """The figures of `scripts.train_text`'s summary that compare the model in a folder with the start."""
    from agents.evaluation.metrics import compare
    from agents.lm.causal_lm import CausalLMPolicy
    from agents.recipes.rlhf.build import build_task
    from textenvs.lm.loading import load_causal_lm

    task = build_task(preset)
    start = task.models.start
    policy = CausalLMPolicy(load_causal_lm(model), eos_token_id=start.eos_token_id)
    return compare(task.assessor.assess(start), task.assessor.assess(policy))[0]
