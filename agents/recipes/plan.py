"""The table of ``textenvs plan``; its settings are in ``agents.recipes.commands.plan``, its formulas in
``agents.lm.scale``."""

from __future__ import annotations

from typing import Any

from agents.lm.loading import weightless
from agents.lm.memory import kv_width
from agents.lm.scale import Shape, update_parts
from agents.recipes.commands.plan import PlanConfig

LLAMA = {
    "1B": Shape(parameters=1_235_814_400, layers=16, hidden=2048, kv_width=512, vocabulary=128_256),
    "8B": Shape(parameters=8_030_261_248, layers=32, hidden=4096, kv_width=1024, vocabulary=128_256),
    "70B": Shape(parameters=70_553_706_496, layers=80, hidden=8192, kv_width=1024, vocabulary=128_256),
}
"""Of Llama 3.2 1B, 3.1 8B and 70B (arXiv:2407.21783)."""


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
    model = weightless(config.model)
    about = model.config.get_text_config()
    return Shape(
        parameters=sum(each.numel() for each in model.parameters()),
        layers=about.num_hidden_layers,
        hidden=about.hidden_size,
        kv_width=kv_width(about),
        vocabulary=about.vocab_size,
    )
