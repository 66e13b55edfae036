"""What each algorithm starts from on text, over its paper's own choices; shared by Python and the commands."""

from __future__ import annotations

from typing import Any

from agents.functional.schedules import Linear
from agents.text.config import PAPERS, Algorithm

PRESETS: dict[Algorithm, dict[str, Any]] = {
    "ppo": {"epochs": 2, "minibatch_size": 64, "learning_rate": Linear(4e-4), "lam": 0.95, "value_coef": 0.1},
    "grpo": {
        "epochs": 2, "minibatch_size": 64, "learning_rate": Linear(4e-4), "kl_in": "reward", "normalize_std": False,
        "average": "constant",
    },
    "rloo": {"epochs": 1, "minibatch_size": None, "learning_rate": Linear(1e-3)},
    "reinforce": {"epochs": 1, "minibatch_size": None, "learning_rate": Linear(1e-3)},
}  # fmt: skip
"""The project's presets for movie reviews, over the papers' own choices (`agents.text.config.PAPERS`).

GRPO charges the KL in the reward and is otherwise Dr. GRPO. As its paper has it (k3 in the loss, divided by the group's
standard deviation) three seeds went 42-49 nats away at the same price: in expectation the gradient of k3 is that of
KL(reference || policy), which hardly resists tokens that the reference holds for rare.
"""


def preset_settings(algorithm: Algorithm, changed: dict[str, Any]) -> dict[str, Any]:
    """Keywords of ``TextAgentConfig``: ``algorithm``'s preset over its paper's choices, but for what is ``changed``.

    A ``kl_estimator`` is of a KL in the loss, so with one GRPO's KL stays where its paper has it.

    Raises:
        ValueError: if there is no such algorithm.
    """
    if algorithm not in PRESETS:
        raise ValueError(f"algorithm: expected one of {', '.join(PRESETS)}, received {algorithm!r}")
    preset = {"max_grad_norm": 1.0, **PRESETS[algorithm]}
    if "kl_estimator" in changed:
        preset.pop("kl_in", None)
    return {"algorithm": algorithm, **PAPERS[algorithm], **preset, **changed}
