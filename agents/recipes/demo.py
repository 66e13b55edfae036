"""The run of ``textenvs demo``; its settings are in `agents.recipes.commands.demo`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agents.evaluation.samples import write_samples
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.loading import check_model
from agents.recipes import control as train_control
from agents.recipes import reward_model as train_reward_model
from agents.recipes.commands.control import Config
from agents.recipes.commands.demo import DemoConfig, NotValidated
from agents.recipes.commands.reward_model import TrainRewardModelConfig
from agents.recipes.rlhf import train as train_text
from agents.recipes.rlhf.config import TrainTextConfig
from agents.reports.kinds import CARTPOLE, CARTPOLE_THRESHOLD
from agents.reports.page import write_report
from agents.runs.devices import check_device
from agents.runs.run_dir import SUMMARY, RunDir
from textenvs import assets
from textenvs.tokens.tokenizers import load_tokenizer

SHOWN = 5


def main(config: DemoConfig) -> dict[str, Any]:
    """Run it; returns what ``summary.json`` holds; NotValidated if CartPole was not solved."""
    check_device(config.device)
    if config.model is not None:
        check_model(config.model)
    console = Console()
    began = time.perf_counter()
    with RunDir(config.run_dir, script="demo", overwrite=config.overwrite, reads=(config.model,)) as run:
        run.begin({"model": config.model, "seed": config.seed, "device": config.device})
        control = validate_ppo(config, run.path / "cartpole", console)
        show_language_model(config, console)
        reward = fit_reward_model(config, run.path / "reward_model", console)
        text = tune(config, run.path / "text", run.path / "reward_model" / "model", console)
        report(text, run.path / "text" / train_text.SAMPLES, console)
        summary = {"cartpole": control, "reward_model": reward, "text": text, "wall_s": time.perf_counter() - began}
        run.write_json(SUMMARY, summary)
        page = write_report(run.path)
        console.print(f"\nreport: {page}")
        console.print(f"tuned model: {run.path / 'text' / train_text.MODEL}   curves: tensorboard --logdir {run.path}")
        console.print(f"all of it took {summary['wall_s']:.0f} s")
        return summary


def validate_ppo(config: DemoConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Stage 1: CartPole, before a language model is touched."""
    console.rule("1  PPO on CartPole-v1")
    threads = torch.get_num_threads()
    summary = train_control.main(Config(env=CARTPOLE, seed=config.seed, run_dir=str(folder), device=config.device))
    torch.set_num_threads(threads)  # control runs on one; the language models want them all
    mean = summary["eval_return_mean"]
    console.print(
        f"greedy return over {summary['eval_episodes']} episodes: {mean:.1f} ± {summary['eval_return_std']:.1f} "
        f"after {summary['steps']} steps in {summary['wall_s']:.1f} s"
    )
    if mean < CARTPOLE_THRESHOLD:
        raise NotValidated(
            f"PPO reached {mean:.1f} on CartPole-v1, below {CARTPOLE_THRESHOLD:.0f}: the algorithm is not validated, "
            "so no language model is trained with it"
        )
    return summary


def show_language_model(config: DemoConfig, console: Console) -> None:
    """Stage 2: what the language model writes before anything rewards it."""
    console.rule("2  The language model")
    path = config.model or str(assets.language_model_dir())
    policy = CausalLMPolicy.from_pretrained(path)
    size = sum(p.numel() for p in policy.model.parameters())
    console.print(f"{path}: {size / 1e6:.1f} million parameters, vocabulary {policy.vocab_size}")
    prompts = assets.OPENINGS.read_text(encoding="utf-8").splitlines()[:SHOWN]
    samples = write_samples(policy, load_tokenizer(path), prompts, max_new_tokens=24, seed=config.seed)
    for opening, ending in zip(samples.openings, samples.endings, strict=True):
        console.print(f"  [bold]{opening}[/bold]{ending}", highlight=False)


def fit_reward_model(config: DemoConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Stage 3: Bradley–Terry on comparisons of human ratings."""
    console.rule("3  A reward model from human ratings")
    model = config.model or str(assets.language_model_dir())
    summary = train_reward_model.main(
        TrainRewardModelConfig(run_dir=str(folder), model=model, seed=config.seed, device=config.device)
    )
    table = Table("held-out comparisons", "right", box=None)
    table.add_row("reward model, rater against rater", f"{summary['pair_accuracy']:.3f}")
    table.add_row("reward model, mean ratings at least 1 apart", f"{summary['pair_accuracy_gap1']:.3f}")
    table.add_row("one human rater, of how the others order two snippets", f"{summary['human_pair_accuracy']:.3f}")
    console.print(table)
    return summary


def tune(config: DemoConfig, folder: Path, reward_model: Path, console: Console) -> dict[str, Any]:
    """Stage 4: token-level PPO with KL shaping towards the model it started from."""
    console.rule("4  PPO on the language model")
    # A higher price than the preset's, which a reward model that is new each time may overrun in variety.
    options: dict[str, Any] = {"model": config.model, "seed": config.seed, "device": config.device, "beta": 0.225}
    return train_text.main(TrainTextConfig.preset(run_dir=str(folder), reward=(str(reward_model),), **options))


def report(text: dict[str, Any], samples: Path, console: Console) -> None:
    """Stage 5: the table, and texts side by side."""
    console.rule("5  Before and after, on held-out prompts")
    table = Table("", "before", "after", box=None)
    for label, name, form in (
        ("reward model's score", "score", "+.2f"),
        ("independent judge's score", "judge", "+.2f"),
        ("perplexity under the start", "perplexity", ".1f"),
        ("distinct bigrams", "distinct2", ".3f"),
        ("length (tokens)", "mean_length", ".1f"),
    ):
        table.add_row(label, f"{text[f'{name}_before']:{form}}", f"{text[f'{name}_after']:{form}}")
    table.add_row("KL to the start (nats per sequence)", "0", f"{text['kl_per_sequence']:.2f}")
    table.add_row("judge prefers it (ties half)", "", f"{text['judge_win_rate']:.1%}")
    console.print(table)
    side_by_side = Table("prompt", "before", "after", show_lines=True)
    for sample in json.loads(samples.read_text())["samples"][:SHOWN]:
        side_by_side.add_row(sample["prompt"], sample["before"].strip(), sample["after"].strip())
    console.print(side_by_side)
