"""What each algorithm starts from on text, over its paper's own choices; shared by Python and the commands."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "ppo": {"epochs": 2, "minibatch_size": 64, "learning_rate": 4e-4, "lam": 0.95, "value_coef": 0.1},
    "grpo": {
        "epochs": 2, "minibatch_size": 64, "learning_rate": 4e-4, "kl_in": "reward", "normalize_std": False,
        "average": "constant",
    },
    "rloo": {"epochs": 1, "learning_rate": 1e-3},
    "reinforce": {"epochs": 1, "learning_rate": 1e-3},
}  # fmt: skip
"""The project's presets for movie reviews, over the papers' own choices (`agents.text.config.PAPERS`).

GRPO charges the KL in the reward and is otherwise Dr. GRPO. As its paper has it (k3 in the loss, divided by the group's
standard deviation) three seeds went 42-49 nats away at the same price: in expectation the gradient of k3 is that of
KL(reference || policy), which hardly resists tokens that the reference holds for rare.
"""

MINIBATCHES = {"ppo": 4, "grpo": 4, "rloo": 1, "reinforce": 1}
"""Optimizer steps a pass over a batch, where the batch is smaller than four of the preset's minibatches."""
