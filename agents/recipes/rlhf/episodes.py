"""The environments of ``train-text --env`` and ``--tools``: what the flags name, to train in or to evaluate in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym

import textenvs  # noqa: F401 (registers the ids)
from agents.algorithms.token_environments import TokenVectorLike, is_token_environment
from agents.ranges import changed, refuse_changed
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.rlhf.rewards import named
from agents.recipes.rlhf.task import OF_SEVERAL
from agents.runs.flags import json_object
from textenvs.dialogues.sub_environments import source_of
from textenvs.dialogues.tools import ToolEnv
from textenvs.dialogues.vector import DialogueVectorEnv
from textenvs.factories import dialogue_vec, wrapped
from textenvs.tokens.prompts import rows_of
from textenvs.tokens.row_files import Row, hold_out, left_over
from textenvs.wrappers.interfaces import Scorer

OF_THE_COMMAND = (
    "num_envs", "group_size", "tokenizer", "vocab_size", "eos_token_id", "autoreset_mode", "reference", "beta",
    "charge", "acting",
)  # fmt: skip
"""Arguments of environments that the command gives, and no option may."""
OF_OTHER_FLAGS = ("env", "tools", "task", "rows", "reward", "scorer", "combine", "weights", "uncertainty_coef")
"""Those of a dialogue's that have flags of their own."""


def build_episodes(
    config: TrainTextConfig,
    num_envs: int,
    scorers: Sequence[Scorer],
    reward: Callable[..., TokenVectorLike],
    *,
    positions: int | None,
    held_out: bool = False,
    **tokens: Any,
) -> TokenVectorLike:
    """The environment that ``config`` names, to train in or, ``held_out``, to evaluate in.

    ``reward`` wraps an environment to pay ``scorers``, which are those of ``--reward``; of tools the one that pays the
    answer. The model's ``positions`` bound a dialogue's tokens where no flag does. ``tokens``: tokenizer, vocab_size,
    eos_token_id and group_size.

    Raises:
        ValueError: if a flag names nothing, does not apply to the environment, or is given as an option, too.
    """
    flags = {"max_turns": config.turns, "max_turn_tokens": config.turn_tokens, "max_tokens": config.max_tokens}
    options: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    registered = config.env is not None and is_token_environment(config.env)
    if registered:
        options |= {name: getattr(config, name) for name in changed(config, "max_new_tokens")}
    own = json_object(config.env_options, "env_options")
    others = json_object(config.eval_env_options, "eval_env_options")
    given = {*OF_THE_COMMAND, *(() if registered else OF_OTHER_FLAGS)}
    for flag, names in (("env_options", own.keys() & {*given, *options}), ("eval_env_options", others.keys() & given)):
        if names:
            raise ValueError(f"{flag}: {', '.join(sorted(names))}: expected only as a flag of the command")
    options |= own | (others if held_out else {})
    if config.env is not None and registered:
        refuse_changed(config, ("tools", "rows", "eval_rows"), f"{config.env} has its own, leave it out")
        made = _fitting(partial(gym.make_vec, config.env, num_envs=num_envs), options | tokens, positions)
        return reward(made, scorers) if scorers else made
    if changed(config, "max_new_tokens"):
        raise ValueError("max_new_tokens: expected turn_tokens, as the model writes turns, received the former")
    makers = (dialogue_vec, DialogueVectorEnv, ToolEnv, wrapped)
    known = {name for maker in makers for name in inspect.signature(maker).parameters}
    source = None
    if config.env is None and not scorers and not options.get("error_reward"):
        raise ValueError("reward: expected one that pays the answer, as nothing else is learned from, received none")
    if config.env is not None:
        source = _source(config.env, {name: options.pop(name) for name in list(options) if name not in known})
    if config.tools is not None:
        options["tools"] = [named("--tools", each.strip()) for each in config.tools.split(",")]
    if config.rows is not None:
        kind = getattr(source, "func", source)
        if config.tools is None and (hasattr(kind, "step") or not hasattr(kind, "reset")):
            raise ValueError(f"rows: expected tools, or a class with reset and without step, received {config.env}")
        options["rows"] = _rows(config)[held_out]
        if len(scorers) > 1 or any(hasattr(scorer, "score_tokens") for scorer in scorers):
            raise ValueError(f"reward: expected one function to pay the answer after rows, received {config.reward}")
        refuse_changed(config, OF_SEVERAL, "of several rewards, and one pays the answer after rows")
        options["reward"] = next(iter(scorers), None)
    envs = _fitting(partial(dialogue_vec, num_envs, env=source), options | tokens, positions)
    return reward(envs, scorers) if scorers and config.rows is None else envs


def _fitting(make: Callable[..., Any], options: dict[str, Any], positions: int | None) -> Any:
    """The environment of ``options``; where they leave its tokens open, with no more than there are ``positions``."""
    made = make(**options)
    if positions is None or "max_tokens" in options or getattr(made.unwrapped, "max_tokens", 0) <= positions:
        return made
    made.close()
    return make(**options, max_tokens=positions)


def _source(env: str, own: dict[str, Any]) -> Callable[..., Any]:
    """What makes the environment that ``--env`` names, with arguments of its ``own``."""
    source = source_of(env)
    try:
        inspect.signature(source).bind_partial(**own)
    except (TypeError, ValueError) as fault:
        raise ValueError(f"env_options: {env}: {fault}") from fault
    return partial(source, **own) if own else source


def _rows(config: TrainTextConfig) -> tuple[list[Row], list[Row]]:
    """Rows to train on and to evaluate on; no question is on both sides."""

    def keys_of(rows: Sequence[Row]) -> list[bytes]:
        found = (row.columns for row in rows)
        return [repr(columns.get("messages", columns.get("prompt", columns))).encode() for columns in found]

    rows = list(rows_of(config.rows or ()))
    keys = keys_of(rows)
    if config.eval_rows is not None:
        judged = list(rows_of(config.eval_rows))
        return [rows[i] for i in left_over([{key} for key in keys], set(keys_of(judged)), config.eval_rows)], judged
    train, others = hold_out(keys, min(config.num_eval_rows, max(1, len(rows) // 10)))
    return [rows[i] for i in train], [rows[i] for i in others]
