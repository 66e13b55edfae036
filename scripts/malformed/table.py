"""The inputs: malformed values for each setting of each command, made from its dataclass, and some by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

import agents
from agents.cli import COMMANDS
from agents.functional.schedules import Schedule
from agents.runs.cli import imported

TEXT = "--run-dir RUN --rows PROMPTS --num-eval-rows 2 --max-new-tokens 2 --no-judge"
USUAL = {
    "train-control": ("PPORun", "--run-dir RUN --total-steps 8 --eval-episodes 1"),
    "train-text": ("TrainTextConfig", f"{TEXT} --episodes 8 --batch-size 8"),
    "train-language-model": ("TrainLanguageModelConfig", "--run-dir RUN --data ROWS --train-tokens 8"),
    "train-reward-model": ("TrainRewardModelConfig", "--run-dir RUN --pairs PAIRS --training.epochs 0.01"),
    "best-of-n": ("BestOfNConfig", f"{TEXT} --samples 2 --max-n 2"),
    "evaluate": ("EvaluateAgentConfig", "--agent EMPTY --episodes 1"),
    "frontier": ("FrontierConfig", "--run-dir EMPTY"),
    "pipeline": ("PipelineConfig", "--run-dir RUN --model EMPTY"),
}
"""Each command's settings, and flags with which it would run, or nearly."""
CONSTRUCTORS = (
    "agents.config:PPOConfig", "agents.config:TRPOConfig", "agents.text.config:TextAgentConfig",
    "agents.algorithms.options:TextOptions", "reward_models.options:TrainingOptions",
)  # fmt: skip
ZERO = {
    "seed", "evaluate_every", "num_samples", "warmup_updates", "critic_warmup", "value_coef", "entropy_coef", "gamma",
    "lam", "critic_lam", "clip_high", "adam_beta1", "adam_beta2", "weight_decay", "baseline_decay", "beta",
    "beta_start", "missing_eos_penalty", "heldout_share", "warmup_share", "final_share", "stop_at_return", "dropout",
    "token_noise", "truncation_share", "average_decay", "centering_coef", "head_lr_multiplier", "cg_damping", "log_std",
    "learning_rate", "reward_uncertainty_coef", "overlong_penalty", "dynamic_sampling", "correction_low",
    "async_rollouts", "branches", "attention_dropout",
}  # fmt: skip
"""Settings that may be 0."""
NEGATIVE = {"pass_score", "stop_at_return", "log_std", "reward_weights", "sde_sample_freq"}
"""Settings that may be negative."""
FILES = {"rows", "eval_rows", "data", "heldout_data", "pairs", "heldout_pairs"}
FOLDERS = {"model", "adapter", "reward", "agent"}
OUTPUTS = {"run_dir", "model_dir"}
NEEDS = {"adapter": "--memory adapters"}  # without which it is refused for that


@dataclass(frozen=True)
class Case:
    """One malformed input."""

    name: str
    names: tuple[str, ...]  # what the message must hold: setting and value; alternatives are parted by "|"
    command: tuple[str, ...] = ()  # a command and its flags; upper-case words stand for files
    call: Callable[[], Any] | None = None  # or a Python call


def make_files(folder: Path) -> dict[str, Path]:
    """The files that upper-case words of `Case.command` stand for."""
    for name in ("EMPTY", "NOTES", "HALF"):
        (folder / name).mkdir()
    numbers = range(24)
    content = {
        "PROMPTS.txt": "\n".join(f"the film {i}" for i in numbers),
        "ROWS.jsonl": "\n".join(f'{{"prompt": "the film {i}", "completion": "is good"}}' for i in numbers),
        "PAIRS.jsonl": "\n".join(f'{{"prompt": "film {i}", "chosen": "good", "rejected": "bad"}}' for i in numbers),
        "MISMATCH.jsonl": '{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}',
        "EMPTY_FILE.jsonl": "", "TRUNCATED.jsonl": '{"prompt": "the fi', "LIST.jsonl": "[1]", "BINARY.jsonl": "\0\x7f",
        "NOTES/config.json": '{"model_type": "llama"}', "HALF/config.json": '{"model_type": ',
        "HALF/tokenizer.json": "{}",
    }  # fmt: skip
    for name, text in content.items():
        (folder / name).write_text(text)
    torch.save({}, folder / "PICKLE.safetensors")
    found = {path.stem: path for path in folder.iterdir()}
    return found | {"RUN": folder / "run", "MISSING": folder / "missing.jsonl"}


def malformed(name: str, hint: Any) -> Iterator[str]:
    """Malformed words for the flag ``name`` of type ``hint``."""
    own, kinds = name.rpartition(".")[2], {hint, *get_args(hint)}
    if any(get_origin(each) is Literal for each in kinds):
        yield "nosuch"
    elif hint is bool:
        yield "maybe"
    elif own in FILES:
        yield from ("MISSING", "EMPTY_FILE", "BINARY", "TRUNCATED", "LIST", "EMPTY")
    elif own in OUTPUTS | FOLDERS:
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
            yield from ((f"{field.name}.{name}", hint) for name, hint in settings_of(hints[field.name]))
        else:
            yield field.name, hints[field.name]


def generated() -> Iterator[Case]:
    """Cases made from the commands' and constructors' dataclasses."""
    for command, (kind, usual) in USUAL.items():
        for name, hint in settings_of(imported(f"{COMMANDS[command][0]}:{kind}")):
            for word in malformed(name, hint):
                flag = f"--{name.replace('_', '-')}"
                own = name.rpartition(".")[2]
                wanted = (word,) if word.isupper() or hint is bool else (f"{own}|{flag}|{own.replace('_', '-')}", word)
                more = NEEDS.get(name, "").split()
                yield Case(f"{command} {flag} {word}", wanted, (command, *usual.split(), *more, f"{flag}={word}"))
    for made in map(imported, CONSTRUCTORS):
        for name, hint in settings_of(made):
            values: list[Any] = [{}, object]
            if {hint, *get_args(hint)} & {int, float}:
                values += ["0.5", float("nan"), float("inf")] + ([-5] if name not in NEGATIVE else [])
            for value in values:
                case = f"{made.__name__}({name}={value!r})"
                yield Case(case, (name, repr(value)), call=partial(made, **{name: value}))


def by_hand() -> Iterator[Case]:
    """Cases that no type tells."""
    for words, names in (
        (f"train-text {TEXT} --temperature 1e-9", "temperature 1e-09"),
        (f"train-text {TEXT} --reward nosuch:f", "--reward nosuch"),
        (f"train-text {TEXT} --reward math:nosuch", "--reward nosuch"),
        (f"train-text {TEXT} --resume", "--resume run"),
        ("train-control --run-dir RUN --env NoSuch-v0", "NoSuch"),
        ("train-control --run-dir NOTES --overwrite", "NOTES"),
        ("train-language-model --run-dir RUN --data ROWS --vocab-size 3", "vocab_size 3"),
        ("train-reward-model --run-dir RUN --pairs MISMATCH", "MISMATCH chosen|rejected"),
        ("evaluate --agent PICKLE", "PICKLE"),
        ("nosuch", "nosuch"),
        ("train-control --nosuch 1", "nosuch"),
    ):
        yield Case(words, tuple(names.split()), tuple(words.split()))
    agent = agents.PPO("CartPole-v1")
    yield Case("learn(nan)", ("total|steps", "nan"), call=partial(agent.learn, float("nan")))
    yield Case("unknown setting", ("gama",), call=partial(agents.PPO, "CartPole-v1", gama=0.9))
