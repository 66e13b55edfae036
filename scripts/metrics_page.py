"""The page that explains every logged metric, made from the code's own tables.

python -m scripts.metrics_page > docs/metrics.md
"""

from __future__ import annotations

from agents.evaluation.curve import METRICS as FRONTIER_METRICS
from agents.evaluation.monitoring import METRICS as MONITOR_METRICS
from agents.runs.logging import METRICS
from agents.text.agent import METRICS as TEXT_AGENT_METRICS
from agents.text.behavior import METRICS as ENGINE_METRICS
from agents.text.rollout_metrics import METRICS as TEXT_METRICS
from reward_models.fitting import METRICS as LANGUAGE_MODEL_METRICS

OTHER_METRICS = {
    "train/loss (reward model)": "Bradley–Terry loss of the step's comparisons, nats per comparison",
    "train/member": "index of the ensemble's member that this step is of; steps count on from member to member",
    "validation/loss (reward model)": "Bradley–Terry loss on the validation part, nats per comparison",
    "train/pairs": "pairs compared since training began, repeats included",
    **{f"{name} (language model)": meaning for name, meaning in LANGUAGE_MODEL_METRICS.items()},
}
"""Of the scripts that do not run PPO."""


FIRST = {
    "`train/logprob_drift`": "must be rounding, some 1e-6 nats in float32 and 0.04 in bfloat16; with more, what learns "
    "is not what wrote",
    "`rollout/score`, `rollout/kl_per_sequence`": "what was gained, and for how many nats; nats without a gain: a "
    "lower learning rate, or a higher beta",
    "`train/explained_variance`": "PPO: near 0 the critic predicts nothing, and advantages are noisy",
    "`train/flat_groups`": "GRPO, RLOO: near 1 the texts of each prompt earn the same, and nothing is learned",
    "`rollout/share_length`": "near 1 the budget cuts most texts: a larger `max_new_tokens` or a `missing_eos_penalty`",
    "`monitor/NAME`": "above 1 is an alarm of [reward hacking](recipes/monitors.md)",
}
"""What tells first whether a training is sound."""


def page() -> str:
    """The page, in Markdown."""
    lines = [
        "# What is logged",
        "",
        "Names are those of TensorBoard, of `progress.csv` and of `agent.metrics`, each with its formula and unit.",
        "",
        "## What to look at first",
        "",
        "| figure | what it says |",
        "|---|---|",
        *(f"| {names} | {meaning} |" for names, meaning in FIRST.items()),
        "",
    ]
    for title, table in (
        ("All agents", METRICS),
        ("Text", TEXT_METRICS | ENGINE_METRICS | TEXT_AGENT_METRICS | FRONTIER_METRICS | MONITOR_METRICS),
        ("Reward model and language model", OTHER_METRICS),
    ):
        lines += [f"## {title}", "", "| name | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |" for name, meaning in table.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
