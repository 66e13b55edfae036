"""The speed rows of `scripts.benchmark_text`: updates of ours and TRL's in turn, and ours beside bare arithmetic.

Each side is a process that waits while others compute; a round is one update of each, and the first round is not
counted. Response tokens are those up to each text's end, on either side.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from scripts.benchmarks.table import Row, row_of
from scripts.benchmarks.text.flops import Transformer, fastest_rate, update_flops, update_shapes
from scripts.benchmarks.text.models import PROMPTS, BenchSizes, write_models
from scripts.benchmarks.text.peer_environments import on_demand, peer_command

Updates = dict[str, list[dict[str, float]]]
"""The figures of each update, by side."""
OF_AN_UPDATE = ("rows", "minibatches", "epochs", "new_tokens", "group_size")
"""Sizes that the peer is told; it reads the others from the models."""


def speed_rows(folder: Path, peers: Path, *, sizes: BenchSizes, rounds: int, threads: int) -> list[Row]:
    """Response tokens a second of PPO, in three forms of ours, of PPO where texts end early, and of GRPO.

    Models, jobs and logs lie in ``folder``. Texts that end early have half the budget as their mean length.
    """
    mean_length = sizes.new_tokens / 2
    whole = _models(folder / "models", sizes)
    early = _models(folder / "models_early", sizes, mean_length=mean_length)

    def measure(name: str, algorithm: str, models: Path, ours: dict[str, list[str]]) -> Updates:
        common = [*our_command(models, sizes, threads=threads), "--algorithm", algorithm]
        commands = {side: common + flags for side, flags in ours.items()}
        job = {"threads": threads, "on_demand": True} | {name: getattr(sizes, name) for name in OF_AN_UPDATE}
        commands["peer"] = peer_command(peers, folder / f"{name}-peer", algorithm, models=models, **job)
        return in_turn(commands, folder / name, rounds=rounds, threads=threads)

    forms = {"shared": [], "separate": ["--critic", "separate"], "bfloat16": ["--dtype", "bfloat16"]}
    ppo = measure("ppo", "ppo", whole, forms)
    ends = measure("early", "ppo", early, {"shared": []})
    grpo = measure("grpo", "grpo", whole, {"ours": []})
    early_name = f"PPO, texts end early (mean {mean_length:.0f} of {sizes.new_tokens} tokens)"
    return [
        speed_row("PPO, shared trunk, float32", ppo, "shared", must=2.5, aim=3.5),
        speed_row("PPO, separate critic on both sides, float32", ppo, "separate", must=1.5, aim=2.0),
        speed_row("PPO, shared trunk, bfloat16 beside TRL's float32", ppo, "bfloat16", must=3.5, aim=6.0),
        speed_row(early_name, ends, "shared", must=4.0, aim=8.0),
        speed_row(f"GRPO, groups of {sizes.group_size}", grpo, "ours", must=1.5, aim=2.5),
    ]


def _models(folder: Path, sizes: BenchSizes, *, mean_length: float | None = None) -> Path:
    """What both sides load; kept if it is there already (the prompts are written last)."""
    if not (folder / PROMPTS).exists():
        write_models(folder, sizes, mean_length=mean_length)
    return folder


def our_command(models: Path, sizes: BenchSizes, *, threads: int) -> list[str]:
    """The command of our updates on demand."""
    flags: list[object] = ["--models", models, "--threads", threads, "--on-demand"]
    for name, value in asdict(sizes).items():
        flags += [f"--sizes.{name.replace('_', '-')}", value]
    return [sys.executable, "-m", "scripts.bench_text_ours", *map(str, flags)]


def in_turn(commands: dict[str, list[str]], logs: Path, *, rounds: int, threads: int) -> Updates:
    """``rounds`` updates of each side, one at a time and in turn, after one of each that does not count."""
    with ExitStack() as stack:
        sides = {
            side: stack.enter_context(on_demand(command, logs / f"{side}.log", threads=threads))
            for side, command in commands.items()
        }
        found: Updates = {side: [] for side in sides}
        for turn in range(rounds + 1):
            for side, update in sides.items():
                figures = update()
                if turn:
                    found[side].append(figures)
            print(f"{logs.name}: {turn} of {rounds} rounds", flush=True)
    return found


def speed_row(name: str, updates: Updates, side: str, *, must: float, aim: float) -> Row:
    """Response tokens a second of ``side`` beside the peer's: medians, and the smallest and largest update.

    The details hold medians of each side's seconds and CPU seconds an update and response tokens, and the ratio of
    response tokens a CPU second.
    """
    pair = {"ours": updates[side], "peer": updates["peer"]}
    rates = {who: [u["response_tokens"] / u["seconds"] for u in found] for who, found in pair.items()}
    per_cpu = {who: statistics.median(u["response_tokens"] / u["cpu_s"] for u in found) for who, found in pair.items()}
    details = {
        f"{who}_{figure}": statistics.median(u[figure] for u in found)
        for figure in ("seconds", "cpu_s", "response_tokens")
        for who, found in pair.items()
    }
    details |= {"ratio_by_cpu": per_cpu["ours"] / per_cpu["peer"]}
    name, unit = f"{name}: response tokens/s", "tokens/s, median"
    return row_of(name, unit, rates, center=statistics.median, must=must, aim=aim, details=details)


def arithmetic_row(folder: Path, *, sizes: BenchSizes, rounds: int, threads: int) -> Row:
    """Seconds of our PPO update (shared trunk, float32) beside those of its products at this machine's matmul rate.

    The rate is the highest of all products of an update and of both ways to multiply, so the bound is a strict one;
    it is measured in turn with the updates.
    """
    models = _models(folder / "models", sizes)
    model = Transformer(layers=sizes.layers, width=sizes.width, vocabulary=sizes.vocabulary)
    rows = sizes.rows // sizes.minibatches
    tokens = rows * (sizes.prompt_tokens + sizes.new_tokens - 1)
    shapes = update_shapes(model, rows=rows, tokens=tokens, predictions=rows * sizes.new_tokens)
    lengths = {"prompts": [sizes.prompt_tokens] * sizes.rows, "responses": [sizes.new_tokens] * sizes.rows}
    flops = update_flops(model, **lengths, epochs=sizes.epochs)["total"]
    torch.set_num_threads(threads)
    found: dict[str, list[float]] = {"ours": [], "peer": []}
    command = our_command(models, sizes, threads=threads)
    with on_demand(command, folder / "arithmetic" / "shared.log", threads=threads) as update:
        update()
        for _ in range(rounds):
            found["ours"].append(update()["seconds"])
            found["peer"].append(flops / fastest_rate(shapes))
    details = {"flops": flops, "flops_per_s": flops / statistics.median(found["peer"])}
    name, center = "PPO update beside its bare products", statistics.median
    return row_of(name, "s, median", found, center=center, must=3.0, aim=1.7, at_most=True, details=details)
