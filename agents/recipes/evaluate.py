"""The run of ``textenvs evaluate``; its settings are in `agents.recipes.commands.evaluate`."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from agents import load_agent
from agents.control.environments import make_vector
from agents.control.evaluation import evaluate
from agents.recipes.commands.evaluate import EvaluateAgentConfig
from agents.recipes.control import BEST
from agents.recipes.rlhf.train import MODEL
from agents.runs.devices import check_device
from agents.runs.own_files import script_of
from agents.runs.run_dir import CONFIG, measured, read_json
from agents.text.agent import TextAgent


def main(config: EvaluateAgentConfig) -> dict[str, Any]:
    """Evaluate, and return the figures.

    Raises:
        CheckpointError: if the agent cannot be loaded.
        ValueError: if there is no agent, neither it nor ``--env`` names an environment, a flag is not of its kind, or
            there is no such device.
        RunDirError: if the run directory cannot be used.
    """
    check_device(config.device)
    return measured(partial(_evaluate, config), asdict(config), script="evaluate_agent", reads=(config.agent,))


def _evaluate(config: EvaluateAgentConfig) -> dict[str, Any]:
    if not config.agent.is_dir() or (config.agent / BEST).exists():
        return evaluate_control(config)
    made_by = script_of(config.agent)
    if made_by not in (None, "train_control", "train_text"):
        command = made_by.replace("_", "-")
        raise ValueError(f"{config.agent}: expected a run of train-control or train-text, received one of {command}")
    if made_by is None or not (config.agent / MODEL).is_dir():
        raise ValueError(
            f"{config.agent} holds neither {BEST} (train-control) nor {MODEL}/ (train-text): pass the run directory of "
            "one of them, not a folder in it, or a file that an agent's save wrote"
        )
    flags = (("--env", config.env is not None), ("--stochastic", config.stochastic), ("--seed", config.seed != 0))
    unread = [flag for flag, given in flags if given]
    if unread:
        raise ValueError(
            f"{config.agent} is a run of train-text: {', '.join(unread)} is of control agents, leave it out"
        )
    return evaluate_text(config)


def evaluate_control(config: EvaluateAgentConfig) -> dict[str, Any]:
    """Figures of whole episodes, greedy unless ``stochastic``; ValueError for an agent that writes texts."""
    torch.set_num_threads(1)
    agent = load_agent(config.agent / BEST if config.agent.is_dir() else config.agent, device=config.device)
    if isinstance(agent, TextAgent):
        raise ValueError(
            f"{config.agent} : expected an agent of a control task, received one of text: pass the folder of a run of "
            "train-text, or measure it in Python by agents.evaluation.eval_rows.EvalRows"
        )
    env_id = config.env or agent.env_id
    if env_id is None:
        raise ValueError("the agent was not trained on an id: pass --env")
    envs = make_vector(env_id, min(config.episodes, 100))
    returns, lengths = evaluate(agent, envs, config.episodes, seed=config.seed, deterministic=not config.stochastic)
    return {
        "env": env_id,
        "eval_return_mean": float(returns.mean()),
        "eval_return_std": float(returns.std()),
        "eval_length_mean": float(lengths.mean()),
        "eval_episodes": len(returns),
    }


def evaluate_text(config: EvaluateAgentConfig) -> dict[str, Any]:
    """Figures of the tuned model beside those of the model it started from, on the run's own held-out prompts."""
    from agents.evaluation.metrics import compare
    from agents.lm.causal_lm import CausalLMPolicy
    from agents.recipes.rlhf.build import build_task
    from agents.recipes.rlhf.config import TrainTextConfig
    from agents.recipes.rlhf.rewards import passing_rule

    settings = read_json(config.agent / CONFIG)
    settings |= {"run_dir": str(config.agent), "device": config.device}
    if settings["rows"] is None:  # of a file only those are held out that the run held out
        settings["num_eval_rows"] = config.episodes
    trained = TrainTextConfig.from_dict(settings)
    task = build_task(trained, passing=passing_rule(trained))
    start = task.models.start
    prompts: Any = task.assessor.prompts  # a list, or tokenized rows
    assessor = replace(task.assessor, prompts=prompts[: config.episodes])
    tuned = CausalLMPolicy.from_pretrained(config.agent / MODEL, sampling=start.sampling).to(config.device)
    figures, samples = compare(assessor.assess(start), assessor.assess(tuned))
    return {"model": str(config.agent / MODEL), "eval_rows": len(samples), **figures}
