"""The command ``textenvs``: everything that a user runs, from the installed package; imports one command's module."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import metadata

from agents.runs.cli import BAD_INPUT, imported

COMMANDS = {
    "train-control": ("agents.recipes.commands.control", "train PPO or TRPO on a control task, any Gymnasium id"),
    "train-text": ("agents.recipes.rlhf.config", "tune a language model by PPO, GRPO, RLOO or REINFORCE"),
    "train-reward-model": ("agents.recipes.commands.reward_model", "fit a reward model on human preferences"),
    "train-language-model": ("agents.recipes.sft.config", "fine-tune a language model, or train a small one anew"),
    "serve": ("agents.recipes.commands.serve", "start a vLLM server that train-text --engine writes by"),
    "evaluate": ("agents.recipes.commands.evaluate", "evaluate what a run left behind"),
    "compare": ("agents.recipes.commands.compare", "put runs on one page: curves over seeds, figures with intervals"),
    "watch": ("agents.recipes.commands.watch", "serve the report of a run while it trains, on this machine alone"),
    "verify": ("agents.verification.proof.command", "run the proof, or check an environment or model of your own"),
    "frontier": ("agents.recipes.commands.frontier", "draw reward against KL of one run or several"),
    "best-of-n": ("agents.recipes.commands.best_of_n", "score the best of n texts, which needs no training"),
    "plan": ("agents.recipes.commands.plan", "print memory, network and time of a run on many GPUs, from formulas"),
    "pipeline": ("agents.recipes.commands.pipeline", "fine-tuning, reward model and PPO on a pretrained model"),
    "guess": ("agents.recipes.commands.guess", "teach a small model to guess a number, by dialogue"),
    "arena": ("agents.recipes.commands.arena", "teach a small model a game of TextArena"),
    "demo": ("agents.recipes.commands.demo", "CartPole, a reward model and PPO on the shipped language model"),
}
"""Name to module (its ``command_line`` runs the command) and what it does."""

USAGE = """usage: textenvs COMMAND [OPTIONS]

Text generation as Gymnasium environments, and agents proven on control tasks before they tune a language model.

    textenvs train-control --env CartPole-v1 --run-dir runs/cartpole
    textenvs train-text --help

commands:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument (None: of ``sys.argv[1:]``) names; its exit code, 2 if there is no such
    command."""
    sys.path.append(os.getcwd())  # where a user's modules are; an installed script does not look there by itself
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print(USAGE + "\n".join(f"    {each:22}{what}" for each, (_, what) in COMMANDS.items()))
        return 0
    if name == "--version":
        print(metadata.version("textenvs"))
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name.replace("_", "-"), COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "textenvs --help lists the commands"
        print(f"error: expected a command, received {name!r}: {hint}", file=sys.stderr)
        return BAD_INPUT
    return run(name, given[1:])


def run(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run the command ``name`` of `COMMANDS`; its exit code."""
    # Commands have progress bars and messages of their own.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.argv[0] = f"textenvs {name}"
    code: int = imported(f"{COMMANDS[name][0]}:command_line")(arguments)
    return code
