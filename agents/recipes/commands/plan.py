"""Print what a run on many GPUs will hold, send and take: memory, network and time of an update, from formulas.

    textenvs plan
    textenvs plan --size 8B --gpus 8 64 --rows 1024 --new-tokens 4096
    textenvs plan --model DIR --gpus 1 --memory-gb 141 --bandwidth-gb-s 4800

Every assumption is a flag; nothing is measured or allocated. `train-text --plan` counts the bytes of one process's run
more closely. docs/recipes/scale.md has the formulas, and what others publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from agents.lm.scale import Machine, Run, Shape, update_parts
from agents.ranges import check_values
from agents.runs.cli import command

LLAMA = {
    "1B": Shape(parameters=1_235_814_400, layers=16, hidden=2048, kv_width=512, vocabulary=128_256),
    "8B": Shape(parameters=8_030_261_248, layers=32, hidden=4096, kv_width=1024, vocabulary=128_256),
    "70B": Shape(parameters=70_553_706_496, layers=80, hidden=8192, kv_width=1024, vocabulary=128_256),
}
"""Of Llama 3.2 1B, 3.1 8B and 70B (arXiv:2407.21783)."""


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


def main(config: PlanConfig) -> dict[str, Any]:
    """Print the table; returns nothing more to print; ValueError if ``model`` cannot be read."""
    shape, columns = shape_of(config), {}
    for gpus in config.gpus:
        columns[gpus] = update_parts(shape, config, config, gpus)
    print(f"{shape.parameters / 1e9:.2f} billion parameters\n{'GPUs':28}" + "".join(f"{n:>12}" for n in columns))
    for name in next(iter(columns.values())):
        print(f"{name:28}" + "".join(f"{column[name]:12.4g}" for column in columns.values()))
    print("gb: 1e9 bytes of a GPU; sent_gb: by a GPU in an update; s: seconds of an update; estimated, not measured")
    return {}


def shape_of(config: PlanConfig) -> Shape:
    """The model's sizes."""
    if config.model is None:
        return LLAMA[config.size]
    from agents.lm.loading import weightless
    from agents.lm.memory import kv_width

    model = weightless(config.model)
    about = model.config.get_text_config()
    return Shape(
        parameters=sum(each.numel() for each in model.parameters()),
        layers=about.num_hidden_layers,
        hidden=about.hidden_size,
        kv_width=kv_width(about),
        vocabulary=about.vocab_size,
    )


command_line = command(PlanConfig, main, __doc__)
