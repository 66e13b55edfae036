"""What trains on the enumerable problems: environments, algorithms, and each one's settings."""

from __future__ import annotations

from typing import Any, get_args

from agents.config import PPOConfig
from agents.functional.schedules import Linear
from agents.text.config import Paper

ENVS = ("textenvs/ExactSpelling-v0", "textenvs/ExactSentiment-v0", "textenvs/ExactRandom-v0")
ENDS, TRUNCATES = "textenvs/ExactDialogue-v0", "textenvs/ExactDialogueTruncated-v0"
ALGORITHMS: tuple[Paper, ...] = get_args(Paper)
GROUPS = ("token", "turn", "state")
CREDITS: dict[Paper, tuple[str, ...]] = {"ppo": GROUPS[:2], "grpo": GROUPS, "rloo": GROUPS, "reinforce": GROUPS[:2]}
DIALOGUES: list[tuple[str, Paper, str]] = [
    (env_id, algorithm, credit)
    for algorithm, credits in CREDITS.items()
    for env_id in ((ENDS, TRUNCATES) if algorithm == "ppo" else (ENDS,))
    for credit in credits
]
"""Environment, algorithm and credit."""
NUM_ENVS = {"tabular": 128, "stepped": 512, "gpt2": 512, "dialogue": 512}
"""Texts or dialogues a batch; "stepped": episodes of the table's PPO side by side."""
PPO_TABLE = PPOConfig(
    num_steps=8, epochs=4, minibatch_size=1024, learning_rate=Linear(0.05, 0.0), gamma=1.0, lam=1.0, value_coef=1.0,
    max_grad_norm=10.0,
)  # fmt: skip
"""Of the table's PPO, which steps through the environment like any control task."""
VARIANTS: tuple[Paper, ...] = ("dr_grpo", "dapo", "gspo", "cispo", "reinforce++", "reinforce++_baseline")
"""They differ in what happens off policy: several optimizer steps a batch."""
SETTINGS: dict[str, dict[Paper, dict[str, Any]]] = {
    "tabular": {
        "grpo": {"learning_rate": 0.1, "epochs": 1, "group_size": 8},
        "rloo": {"learning_rate": 0.1, "group_size": 8},
        "reinforce": {"learning_rate": 0.1},
        **{name: {"learning_rate": 0.1, "minibatch_size": 64} for name in VARIANTS},
        "reinforce++": {"learning_rate": 0.05},
    },
    "gpt2": {
        "ppo": {"learning_rate": 1e-3, "minibatch_size": 128, "epochs": 4, "lam": 1.0, "value_coef": 0.2},
        "grpo": {"learning_rate": 5e-4, "minibatch_size": 128, "epochs": 2, "group_size": 8},
        "rloo": {"learning_rate": 1e-3, "group_size": 8},
        "reinforce": {"learning_rate": 1e-3},
        **{name: {"learning_rate": 5e-4, "minibatch_size": 128} for name in VARIANTS},
    },
    "dialogue": {
        "ppo": {
            "learning_rate": 0.05, "minibatch_size": 128, "epochs": 2, "lam": 0.95, "value_coef": 1.0,
            "max_grad_norm": 10.0,
        },
        "grpo": {"learning_rate": 0.05, "epochs": 1, "group_size": 8},
        "rloo": {"learning_rate": 0.05, "group_size": 8},
        "reinforce": {"learning_rate": 0.05},
    },
}  # fmt: skip
"""Over the papers' choices, by policy."""
UPDATES: dict[str, dict[Paper, int]] = {
    "tabular": dict.fromkeys(ALGORITHMS, 800) | {"ppo": 64, "reinforce++": 1600},
    "gpt2": dict.fromkeys(ALGORITHMS, 600) | {"ppo": 240},
    "dialogue": dict.fromkeys(ALGORITHMS, 400) | {"ppo": 60},
}
"""Rollouts that each training learns from."""
ANNEALED: dict[str, tuple[float, float]] = {"tabular": (6.0, 0.6), "gpt2": (3.0, 0.5)}
"""The initial KL coefficient over the task's own, and the share of training in which it falls to that."""
