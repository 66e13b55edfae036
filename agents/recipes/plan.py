"""The table of ``textenvs plan``; its settings are in ``agents.recipes.commands.plan``, its formulas in
``agents.lm.scale``."""

from __future__ import annotations

from typing import Any

from agents.lm.loading import weightless
from agents.lm.scale import Shape, update_parts
from agents.recipes.commands.plan import PlanConfig

LLAMA = {
    "1B": (1_235_814_400, 16, 2048, 512, 128_256),
    "8B": (8_030_261_248, 32, 4096, 1024, 128_256),
    "70B": (70_553_706_496, 80, 8192, 1024, 128_256),
}
"""Parameters, layers, hidden size, width of keys, vocabulary of Llama 3.2 1B, 3.1 8B and 70B (arXiv:2407.21783)."""


def main(config: PlanConfig) -> dict[str, Any]:
    """Print the table; returns nothing more to print.

    Raises:
        ValueError: if ``model`` cannot be read.
    """
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
        parameters, layers, hidden, kv_width, vocabulary = LLAMA[config.size]
    else:
        model = weightless(config.model)
        about = model.config.get_text_config()
        heads = about.num_attention_heads
        size = getattr(about, "head_dim", None) or about.hidden_size // heads
        parameters, layers, hidden = (
            sum(x.numel() for x in model.parameters()),
            about.num_hidden_layers,
            about.hidden_size,
        )
        kv_width, vocabulary = size * (getattr(about, "num_key_value_heads", None) or heads), about.vocab_size
    return Shape(parameters=parameters, layers=layers, hidden=hidden, kv_width=kv_width, vocabulary=vocabulary)
