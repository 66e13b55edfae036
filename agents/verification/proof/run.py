"""The run of ``textenvs verify``; its settings are in `agents.verification.proof.command`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch

import textenvs  # noqa: F401 (registers the ids)
from agents.runs.run_dir import SUMMARY, RunDir
from agents.verification.checks import Check, Checking, at_most, headings, markdown, not_applicable, printed, run, tally
from agents.verification.proof.command import CheckFailed, VerifyConfig
from reward_models.aside import write_aside

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TABLE = "verify.md"


def main(config: VerifyConfig) -> dict[str, Any]:
    """Run the checks, print the table and save it; the summary has counts, seconds, and a line for each claim.

    Raises:
        CheckFailed: if a check fails; the run directory is complete then, too.
        gymnasium.error.Error: if the environment's id is unknown.
        ValueError: if model or policy cannot be loaded.
    """
    if config.run_dir is None:
        checks, summary = _verify(config)
    else:
        reads = (config.model, config.policy)
        subjects = ", ".join(str(one) for one in (config.env, config.model) if one is not None)
        with RunDir(config.run_dir, script="verify", overwrite=config.overwrite, reads=reads) as run_dir:
            checks, summary = _verify(config)
            run_dir.begin(asdict(config))
            write_aside(run_dir.path / TABLE, markdown(f"Verified: {subjects or 'all checks'}", checks))
            run_dir.write_json(SUMMARY, summary)
    print(f"\n{tally(checks)} in {summary['wall_s']:.1f} s")
    if summary["failed"]:
        names = "; ".join(check.claim for check in checks if check.passed is False)
        raise CheckFailed(f"{summary['failed']} of {len(checks)} checks failed: {names}")
    return summary


def _verify(config: VerifyConfig) -> tuple[list[Check], dict[str, Any]]:
    torch.set_num_threads(1)  # small networks: a second thread costs more than it saves
    began = time.perf_counter()
    print(headings())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gym.logger.min_level, before = gym.logger.ERROR, gym.logger.min_level
        try:
            show = lambda check: print(printed([*check[:3], check.verdict]), flush=True)  # noqa: E731
            checks = [check for checkings in _rooms(config) for check in run(checkings(), show)]
        finally:
            gym.logger.min_level = before
    summary: dict[str, Any] = {
        "passed": sum(check.passed is True for check in checks),
        "failed": sum(check.passed is False for check in checks),
        "not_applicable": sum(check.passed is None for check in checks),
        "wall_s": round(time.perf_counter() - began, 3),
    }
    return checks, summary | {check.claim: f"{check.verdict}: {check.measured}" for check in checks}


def _rooms(config: VerifyConfig) -> list[Callable[[], Sequence[Checking]]]:
    """The groups of checks; each is imported only when needed."""
    rooms: list[Callable[[], Sequence[Checking]]] = []
    if config.env is not None:
        from agents.verification.environments.contract import env_checks
        from agents.verification.environments.dialogues import dialogue_checks, speaks_text
        from agents.verification.environments.subject import Subject

        if speaks_text(config.env):
            dialogues = partial(dialogue_checks, config.env, config.seed)
            rooms.append(dialogues)
        else:
            subject = Subject(config.env, checkpoint=config.policy, seed=config.seed)
            rooms.append(lambda: env_checks(subject))
    if config.model is not None:
        rooms.append(_model_room(config.model, config.seed))
    if rooms:
        return rooms
    from agents.verification.exact.probes import PROBES
    from agents.verification.proof.core import core_checks, language_model_checks
    from agents.verification.proof.training import cart_pole, gap_checks, resumed

    proof: dict[str, Callable[[], Sequence[Checking]]] = {
        "core": core_checks,
        "text": language_model_checks,
        "families": lambda: [_families(full=config.families == "full")],
        "probes": lambda: [(f"probe {name}", probe) for name, probe in PROBES.items()],
        "gap": lambda: gap_checks(full=config.gap == "full"),
        "resume": lambda: [("resumed in a new process = uninterrupted, bit for bit", resumed)],
        "cartpole": lambda: [("CartPole-v1 is solved by its preset: greedy mean over 100 episodes", cart_pole)],
    }
    return [proof[room] for room in config.rooms]


def _families(*, full: bool) -> Checking:
    from transformers.utils import logging

    from agents.verification.models.family_paths import family_line

    logging.set_verbosity_error()  # what tiny configurations lack
    claim = "model families: tiny models are exact in every path, or refused with the reason"
    return claim, partial(family_line, full=full)


def _model_room(path: str, seed: int) -> Callable[[], Sequence[Checking]]:
    """The checks of a model; first, that it is deterministic and can be wrapped as a policy."""
    from transformers.utils import logging

    from agents.verification.models.profile import profile_checks
    from textenvs.lm.loading import load_causal_lm
    from textenvs.tokens.tokenizers import load_tokenizer

    logging.disable_progress_bar()
    loaded = load_causal_lm(path)
    try:
        tokenizer: Any = load_tokenizer(path)
    except (ValueError, OSError):
        tokenizer = None
    claim = "the model has an embedding for every token of its tokenizer"
    fits: Checking = (claim, partial(tokenizer_fits, claim, tokenizer, loaded))
    return lambda: [*profile_checks(loaded, tokenizer), fits, *checks_of_model(loaded, seed)]


def tokenizer_fits(claim: str, tokenizer: Any, loaded: PreTrainedModel) -> Check:
    """Every token of the tokenizer has an embedding in the model."""
    if tokenizer is None:
        return not_applicable(claim, "there is no tokenizer beside the model")
    known = len(tokenizer)
    embedding: Any = loaded.get_input_embeddings()
    embedded = embedding.num_embeddings
    return at_most(claim, known, embedded, f" tokens; {embedded} embeddings")


def checks_of_model(loaded: PreTrainedModel, seed: int = 0) -> Sequence[Checking]:
    """All checks of a ``transformers`` model that is in memory."""
    from agents.verification.models.policy import Model, model_checks, steady
    from agents.verification.models.text import text_checks

    claim = "in evaluation mode the model returns the same twice, in finite numbers (T9)"
    plain: Checking = (claim, partial(steady, loaded))
    try:
        model = Model(loaded, seed=seed)
    except Exception as error:  # reported by the check below
        refusal = error

        def refused() -> Check:
            raise refusal

        return [plain, ("the model can be a policy", refused)]
    return [plain, *model_checks(model), *text_checks(model)]
