"""The inputs: malformed values for each setting of each command, made from its dataclass, and some by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

import agents
from agents.config import PPOConfig, TRPOConfig
from agents.functional.schedules import Schedule
from agents.recipes.commands.best_of_n import BestOfNConfig
from agents.recipes.commands.control import Config as ControlConfig
from agents.recipes.commands.evaluate import EvaluateAgentConfig
from agents.recipes.commands.frontier import FrontierConfig
from agents.recipes.commands.pipeline import PipelineConfig
from agents.recipes.commands.reward_model import TrainRewardModelConfig
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.sft.config import TrainLanguageModelConfig
from agents.text.config import TextAgentConfig
from reward_models.options import TrainingOptions

COMMANDS: dict[str, tuple[type[Any], str]] = {
    "train-control": (ControlConfig, "--run-dir RUN --total-steps 8 --eval-episodes 1"),
    "train-text": (
        TrainTextConfig,
        "--run-dir RUN --prompts PROMPTS --episodes 8 --batch-size 8 --max-new-tokens 2 --no-judge "
        "--num-eval-prompts 2",
    ),
    "train-language-model": (TrainLanguageModelConfig, "--run-dir RUN --data ROWS --train-tokens 8"),
    "train-reward-model": (TrainRewardModelConfig, "--run-dir RUN --pairs PAIRS --training.epochs 0.01"),
    "best-of-n": (BestOfNConfig, "--run-dir RUN --prompts PROMPTS --samples 2 --max-n 2 --no-judge --max-new-tokens 2"),
    "evaluate": (EvaluateAgentConfig, "--agent EMPTY --episodes 1"),
    "frontier": (FrontierConfig, "--run-dir EMPTY"),
    "pipeline": (PipelineConfig, "--run-dir RUN --model EMPTY"),
}
"""Each command's settings, and flags with which it would run."""
CONSTRUCTORS = (PPOConfig, TRPOConfig, TextAgentConfig, TrainingOptions)
ZERO = {
    "seed", "evaluate_every", "num_samples", "warmup_updates", "critic_warmup", "value_coef", "entropy_coef", "gamma",
    "lam", "critic_lam", "clip_high", "adam_beta1", "adam_beta2", "weight_decay", "baseline_decay", "beta",
    "beta_start", "missing_eos_penalty", "heldout_share", "warmup_share", "final_share", "stop_at_return", "dropout",
    "token_noise", "truncation_share", "average_decay", "centring_coef", "head_lr_multiplier", "cg_damping", "log_std",
    "learning_rate", "reward_uncertainty_coef",
}  # fmt: skip
"""Settings that may be 0."""
NEGATIVE = {"stop_at_return", "log_std", "reward_weights", "sde_sample_freq"}
"""Settings that may be negative."""
FILES = {"prompts", "eval_prompts", "data", "heldout_data", "pairs", "heldout_pairs"}
FOLDERS = {"model", "adapter", "reward_model", "agent", "run_dir", "model_dir"}
OUTPUTS = {"run_dir", "model_dir"}
BROKEN = ("MISSING", "EMPTY_FILE", "BINARY", "TRUNCATED", "LIST")
"""Files of `make_files`."""


NEEDS = {"adapter": "--memory adapters"}
"""Flags without which a flag is refused for their lack."""


@dataclass(frozen=True)
class Case:
    """One malformed input."""

    name: str
    names: tuple[str, ...]
    """What the message must hold: the setting, and what was received; alternatives are parted by "|"."""
    command: tuple[str, ...] = ()
    """A command and its flags; upper-case words stand for files."""
    call: Callable[[], Any] | None = None
    """Or a Python call."""


def make_files(folder: Path) -> dict[str, Path]:
    """The files that upper-case words of `Case.command` stand for."""
    rows = [{"prompt": f"the film {i}", "completion": f"is good {i}"} for i in range(24)]
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "is bad"} for row in rows]
    (folder / "PROMPTS.txt").write_text("\n".join(row["prompt"] for row in rows))
    content = {
        "ROWS": "\n".join(map(json.dumps, rows)),
        "PAIRS": "\n".join(map(json.dumps, pairs)), "EMPTY_FILE": "", "TRUNCATED": '{"prompt": "the fi', "LIST": "[1]",
        "MISMATCH": '{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}',
    }  # fmt: skip
    for name, text in content.items():
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "BINARY.jsonl").write_bytes(bytes(range(256)) * 4)
    (folder / "EMPTY").mkdir()
    (folder / "NOTES").mkdir()
    (folder / "NOTES" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "HALF").mkdir()
    (folder / "HALF" / "config.json").write_text('{"model_type": ')
    (folder / "HALF" / "tokenizer.json").write_text("{}")
    torch.save({}, folder / "PICKLE.safetensors")
    found = {path.stem: path for path in folder.iterdir()}
    return found | {"RUN": folder / "run", "MISSING": folder / "missing.jsonl"}


def malformed(name: str, hint: Any) -> Iterator[str]:
    """Malformed words for the flag ``name`` of type ``hint``."""
    own, kinds = name.rpartition(".")[2], {hint, *get_args(hint)}
    literal = [each for each in kinds if get_origin(each) is Literal]
    if literal:
        yield "nosuch"
    elif hint is bool:
        yield "maybe"
    elif own in FILES:
        yield from (*BROKEN, "EMPTY")
    elif own in FOLDERS:
        yield from ("NOTES", "BINARY") if own in OUTPUTS else ("MISSING", "BINARY", "EMPTY", "HALF")
    elif own == "device":
        yield from ("nosuch", "cuda:99")
    elif kinds & {int, float} or hint in (Schedule, Schedule | None) or own == "reward_weights":
        yield from ("x", "nan", "inf")
        if own not in NEGATIVE:
            yield "-1"
            if own not in ZERO:
                yield "0"


def settings_of(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Names, dotted below a group, and types of the settings of ``kind``."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from ((f"{field.name}.{name}", hint) for name, hint in settings_of(hints[field.name]))  # type: ignore[arg-type]
        else:
            yield field.name, hints[field.name]


def generated() -> Iterator[Case]:
    """Cases made from the commands' and constructors' dataclasses."""
    for command, (kind, usual) in COMMANDS.items():
        for name, hint in settings_of(kind):
            for word in malformed(name, hint):
                flag = f"--{name.replace('_', '-')}"
                wanted = (f"{name.rpartition('.')[2]}|{flag}|{flag.lstrip('-')}|{word}", f"{word}|{word}.0")
                more = NEEDS.get(name, "").split()
                yield Case(f"{command} {flag} {word}", wanted, (command, *usual.split(), *more, f"{flag}={word}"))
    for kind in CONSTRUCTORS:
        for name, hint in settings_of(kind):
            values: list[Any] = [{}, object]
            if {hint, *get_args(hint)} & {int, float}:
                values += ["0.5", float("nan"), float("inf")] + ([-5] if name not in NEGATIVE else [])
            for value in values:
                case = f"{kind.__name__}({name}={value!r})"
                yield Case(case, (name, repr(value)), call=lambda kind=kind, n=name, v=value: kind(**{n: v}))


def by_hand() -> Iterator[Case]:
    """Cases that no type tells."""
    text = COMMANDS["train-text"][1].split()
    for words, names in (
        (("train-text", *text, "--temperature", "1e-9"), ("temperature", "1e-09")),
        (("train-text", *text, "--reward-model", "nosuch:f"), ("reward-model", "nosuch")),
        (("train-text", *text, "--reward-model", "math:nosuch"), ("reward-model", "nosuch")),
        (("train-text", *text, "--resume"), ("--resume", "run")),
        (("train-control", "--run-dir", "RUN", "--env", "NoSuch-v0"), ("NoSuch",)),
        (("train-control", "--run-dir", "NOTES", "--overwrite"), ("NOTES",)),
        (("train-language-model", "--run-dir", "RUN", "--data", "ROWS", "--vocab-size", "3"), ("vocab_size", "3")),
        (("train-reward-model", "--run-dir", "RUN", "--pairs", "MISMATCH"), ("MISMATCH", "chosen|rejected")),
        (("evaluate", "--agent", "PICKLE"), ("PICKLE",)),
        (("nosuch",), ("nosuch",)),
        (("train-control", "--nosuch", "1"), ("nosuch",)),
    ):
        yield Case(" ".join(words), names, words)
    yield Case("PPO of no id", ("NoSuch-v0",), call=lambda: agents.PPO("NoSuch-v0"))
    yield Case("learn(nan)", ("total|steps", "nan"), call=lambda: agents.PPO("CartPole-v1").learn(float("nan")))  # type: ignore[arg-type]
    yield Case("unknown setting", ("gama",), call=lambda: agents.PPO("CartPole-v1", gama=0.9))
