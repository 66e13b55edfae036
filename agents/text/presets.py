"""The project's settings of each algorithm on text, on top of its paper's; shared by Python and the commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.functional.schedules import Linear
from agents.text.config import Algorithm, Paper, paper_settings

PRESETS: dict[Paper, dict[str, Any]] = {
    "ppo": {"epochs": 2, "minibatch_size": 64, "learning_rate": Linear(4e-4), "lam": 0.95, "value_coef": 0.1},
    "grpo": {
        "epochs": 2, "minibatch_size": 64, "learning_rate": Linear(4e-4), "kl_in": "reward", "normalize_std": False,
        "average": "constant",
    },
    "rloo": {"epochs": 1, "minibatch_size": None, "learning_rate": Linear(1e-3)},
    "reinforce": {"epochs": 1, "minibatch_size": None, "learning_rate": Linear(1e-3)},
    **{
        name: {"minibatch_size": 64, "learning_rate": Linear(4e-4)}
        for name in ("dr_grpo", "dapo", "gspo", "cispo", "reinforce++_baseline")
    },
    "reinforce++": {"minibatch_size": None, "learning_rate": Linear(1e-3)},
}  # fmt: skip
"""Presets for movie reviews, on top of the papers' settings (`agents.text.config.PAPERS`).

GRPO charges the KL in the reward and is otherwise Dr. GRPO. With its paper's settings (k3 in the loss, divided by the
group's standard deviation) three seeds reached 42-49 nats at the same KL coefficient: in expectation the gradient of k3
is that of KL(reference || policy), which hardly penalizes tokens that are rare under the reference.
"""

REWARD_CRITIC: dict[str, Any] = {
    "critic_start": "reward-model", "value_coef": 0.5, "lam": 0.5, "critic_lam": 1.0, "branches": 4, "beta": 0.21,
}  # fmt: skip
"""PPO's where a critic of its own can begin as the reward model: docs/results/ablation.md has each setting's part."""
ANOTHER_WAY = (
    "critic", "lora", "memory", "critic_start", "shard", "env", "tools", "engine", "async_rollouts",
    "correction", "policy_loss", "whiten_rewards", "normalize_advantages", "objective",
)  # fmt: skip
"""Settings, of Python or a command, that are about the critic, or that ``branches`` does not go with: who gives one
gives the others."""
ITS_OWN = {"critic": "separate", "memory": "full", "shard": "none", "async_rollouts": 0}
"""Values of these that are the preset's, too."""
SHAPE = (
    "model_type", "vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads",
    "n_head", "intermediate_size",
)  # fmt: skip


def described(config: Mapping[str, Any], known: object) -> dict[str, Any]:
    """What must be equal of a language model and of a reward model for a critic of the one to begin as the other: the
    shape in ``config``, the content of its ``config.json``, and what else is ``known``: vocabulary or weights."""
    return {name: config.get(name) for name in SHAPE} | {"known": known}


def critic_starts_as_reward(
    algorithm: Paper, given: Mapping[str, Any], model: dict[str, Any] | None, reward: dict[str, Any] | None
) -> bool:
    """True if ``REWARD_CRITIC`` is the preset: ``algorithm`` is PPO, ``model`` and ``reward``, as ``described`` (None:
    there is none), are alike, and no setting in ``given`` asks for another way."""
    values = ((name, given[name]) for name in ANOTHER_WAY if given.get(name) is not None and given[name] is not False)
    asked = any(value != ITS_OWN.get(name) for name, value in values)
    return algorithm == "ppo" and not asked and model is not None and model == reward


def learning_rate_for(algorithm: Algorithm, num_parameters: int, *, adapters: bool = False) -> Linear:
    """The preset's learning rate for a model of another size than the project's own, which has 2.4 million parameters.

    ========================  ==========================================================================
    up to 10 million          the preset's own
    up to a billion           1/40 of it: with PPO's 4e-4 SmolLM2-135M is 10 nats away after 48 texts
    more                      1/400 of it: 1e-6 for PPO and GRPO, the default of TRL and OpenRLHF
    LoRA adapters             ten times as much, up to the preset's own (Schulman et al. 2025, "LoRA Without Regret")
    ========================  ==========================================================================
    """
    preset: Linear = PRESETS[algorithm]["learning_rate"]
    divisor = 1 if num_parameters <= 10e6 else 40 if num_parameters <= 1e9 else 400
    return Linear(preset.start / max(1.0, divisor / 10 if adapters else divisor), preset.end)


def preset_settings(algorithm: Paper, changed: dict[str, Any]) -> dict[str, Any]:
    """Keywords of ``TextAgentConfig``: ``algorithm``'s preset on top of its paper's settings, updated by ``changed``.

    A ``kl_estimator`` applies to a KL in the loss, so with one GRPO's KL stays in the loss, as in its paper.

    Raises:
        ValueError: if there is no such algorithm.
    """
    paper = paper_settings(algorithm)
    preset = {"max_grad_norm": 1.0, **PRESETS[algorithm]}
    if changed.get("kl_estimator") is not None:
        preset.pop("kl_in", None)
    return {**paper, **preset, **changed}
