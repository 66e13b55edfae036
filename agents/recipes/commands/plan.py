"""Print what a run on many GPUs will hold, send and take: memory, network and time of an update, from formulas.

    textenvs plan
    textenvs plan --size 8B --gpus 8 64 --rows 1024 --new-tokens 4096
    textenvs plan --model DIR --gpus 1 --memory-gb 141 --bandwidth-gb-s 4800

Every assumption is a flag; nothing is measured or allocated. `train-text --plan` counts the bytes of one process's run
more closely. docs/recipes/scale.md has the formulas, and what others publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.lm.scale import Machine, Run
from agents.ranges import check_values
from agents.runs.cli import command


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Run, Machine):
    """Model: whose size counts, and on how many GPUs."""

    size: Literal["1B", "8B", "70B"] = "8B"
    """Llama 3's shape, unless `model` names another."""
    model: str | None = None
    """Causal LM, directory or name, whose configuration is read. None: `size`."""
    gpus: tuple[int, ...] = (1, 8, 64)
    """Numbers of GPUs, a column each."""

    def __post_init__(self) -> None:
        counts = "rows prompt_tokens new_tokens epochs pass_tokens gpus_per_node"
        speeds = "memory_gb tflops bandwidth_gb_s link_gb_s network_gb_s"
        shares = "products_share bandwidth_share link_share"
        check_values(self, {">= 1": counts, ">= 0": "scoring_passes", "> 0": speeds, "in (0, 1]": shares})
        if not self.gpus or min(self.gpus) < 1:
            raise ValueError(f"gpus: expected a number or more, each >= 1, received {self.gpus}")


command_line = command(PlanConfig, "agents.recipes.plan:main", __doc__)
