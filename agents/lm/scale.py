"""What a process of a run on many GPUs holds and sends, and the time of an update from its parts.

Formulas over parameters and tokens, with every assumption a field; nothing here was measured. Weights are sharded by
FSDP2 (Zhao et al. 2023, arXiv:2304.11277): float32 masters, gradients and Adam's states, products in bfloat16. Texts
are written by an engine on the same GPUs, whose bfloat16 weights are split over as few GPUs as hold them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a language model."""

    parameters: int
    layers: int
    hidden: int
    kv_width: int
    """Numbers of a token's key in a layer: heads times their size."""
    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Machine: what is assumed of a GPU and of what connects them; an H100 SXM's data sheet, and shares reached."""

    gpus_per_node: int = 8
    """GPUs that NVLink connects."""
    memory_gb: float = 80.0
    """Memory of a GPU, 1e9 bytes."""
    tflops: float = 989.0
    """Dense bfloat16 products, 1e12 operations a second."""
    products_share: float = 0.4
    """Of that, what whole passes reach."""
    bandwidth_gb_s: float = 3350.0
    """Of the memory, 1e9 bytes a second."""
    bandwidth_share: float = 0.6
    """Of that, what decoding reaches."""
    link_gb_s: float = 450.0
    """To other GPUs of the node, each way, 1e9 bytes a second a GPU."""
    network_gb_s: float = 50.0
    """To other nodes (400 Gbit/s)."""
    link_share: float = 0.7
    """Of these, what collectives reach."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run: an update's texts."""

    rows: int = 512
    """Texts an update."""
    prompt_tokens: int = 256
    """Of each."""
    new_tokens: int = 1024
    """Mean of completions, tokens."""
    epochs: int = 1
    """Passes over each batch."""
    pass_tokens: int = 16384
    """Tokens of a GPU in one backward pass."""
    scoring_passes: int = 1
    """Passes without gradients over all texts: the reference, a reward model of this size, old log-probs."""
    critic: bool = False
    """A critic of its own, of the policy's size."""
    shard: Literal["fsdp", "none"] = "fsdp"
    """What GPUs hold of weights, gradients and states: "fsdp", a part of each; "none", all of them in each GPU."""


def update_parts(shape: Shape, run: Run, machine: Machine, gpus: int) -> dict[str, float]:
    """Bytes that each of ``gpus`` holds (``gb_...``) and sends in an update (``sent_gb_...``), and seconds by part
    (``s_...``).

    ``s_update`` is the longer of products and gathers, which overlap; ``fits`` is 1 if what is held at a time is below
    nine tenths of the memory.
    """
    weights, trained, width = shape.parameters, 2 if run.critic else 1, run.prompt_tokens + run.new_tokens
    tokens, others = run.rows * width, (gpus - 1) / gpus
    products = machine.tflops * 1e12 * machine.products_share * gpus
    link = 1e9 * machine.link_share * (machine.link_gb_s if gpus <= machine.gpus_per_node else machine.network_gb_s)
    memory = 1e9 * machine.bandwidth_gb_s * machine.bandwidth_share

    forward = tokens * (2 * weights + 2 * shape.layers * shape.hidden * width)  # causal attention: half of all pairs
    passes = run.epochs * max(1, math.ceil(tokens / gpus / run.pass_tokens))
    gathered, reduced = 2 * 2 * weights * others * passes, 4 * weights * others * passes  # bfloat16 twice, float32 once
    shards = gpus
    if run.shard == "none":  # gradients are summed once a step, there and back
        gathered, reduced, shards = 0.0, 2 * 4 * weights * others * run.epochs, 1

    split = min(gpus, 2 ** max(0, math.ceil(math.log2(2 * weights / (0.5e9 * machine.memory_gb)))))
    replicas = max(1, gpus // split)
    cache_of_row = 2 * 2 * shape.layers * shape.kv_width * width
    room = 0.3e9 * machine.memory_gb * split
    at_once = max(1, min(math.ceil(run.rows / replicas), int(room / cache_of_row)))
    waves = run.rows / replicas / at_once
    step = (2 * weights + at_once * cache_of_row / 2) / (memory * split)
    step = max(step, 2 * weights * at_once * gpus / (products * split))
    prefill = 2 * weights * run.rows * run.prompt_tokens / products

    layer = (weights - shape.vocabulary * shape.hidden) / shape.layers
    held = {
        "gb_weights_gradients_adam": 16 * trained * weights / shards,
        "gb_frozen": 2 * run.scoring_passes * weights / shards,
        "gb_gathered": 2 * (2 * layer + shape.vocabulary * shape.hidden) if shards > 1 else 0.0,
        "gb_activations": 2.0 * run.pass_tokens * shape.hidden * (shape.layers + 32),  # layers' inputs, and one layer
        "gb_engine": 2 * weights / split + at_once * cache_of_row / split,
    }
    steady = held["gb_weights_gradients_adam"] + held["gb_frozen"]
    total = steady + max(held["gb_gathered"] + held["gb_activations"], held["gb_engine"])
    seconds = {
        "s_generate": prefill + waves * run.new_tokens * step,
        "s_score": run.scoring_passes * forward / products,
        "s_update": max(4 * trained * run.epochs * forward / products, trained * (gathered + reduced) / link),
        "s_adam": 28 * trained * weights / shards / memory,
        "s_weights_to_engine": 2 * weights * others / link,
    }
    return {
        **{name: size / 1e9 for name, size in held.items()},
        "gb_total": total / 1e9,
        "fits": float(total <= 0.9e9 * machine.memory_gb),
        "sent_gb_gathered": trained * gathered / 1e9,
        "sent_gb_gradients": trained * reduced / 1e9,
        "sent_gb_to_engine": 2 * weights * others / 1e9,
        **seconds,
        "s_total": sum(seconds.values()),
        "tokens_per_s": run.rows * run.new_tokens / sum(seconds.values()),
    }
