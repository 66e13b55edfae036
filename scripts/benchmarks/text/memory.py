"""Peak memory of `scripts.train_text` beyond the trunk's own weights, for each memory mode.

    python -m scripts.benchmark_memory --run-dir runs/memory
    python -m scripts.benchmark_memory --run-dir runs/memory --model runs/smollm2/model --microbatch-size 2

Each way is a process of its own that trains for a few updates and reports ``peak_memory_bytes``: its highest resident
memory until training and its checkpoint end (``getrusage``), less that before the first model is loaded, when Python
and all libraries are. From that only the weights of one trunk are subtracted: caches, allocator slack and threads'
buffers all count. Without ``--model`` the trunk has SmolLM2-135M's shape and random weights, which take as much.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from agents.recipes.games.teaching import word_tokenizer
from agents.runs.cli import command
from agents.runs.run_dir import SUMMARY, RunDir
from scripts.benchmarks.processes import run_once
from scripts.benchmarks.text.models import numbered


@dataclass(frozen=True, kw_only=True)
class BenchmarkMemoryConfig:
    """Measure the memory of text runs."""

    run_dir: str
    """Folder for the runs, config.json and summary.json."""
    overwrite: bool = False
    """Overwrite a finished benchmark in that folder."""
    model: str | None = None
    """Directory of a causal LM with its tokenizer. None: SmolLM2-135M's shape with random weights."""
    memory: tuple[Literal["full", "shared", "adapters"], ...] = ("full", "adapters")
    """Memory modes to measure."""
    updates: int = 2
    """Updates of each."""
    batch_size: int = 16
    """Texts an update."""
    minibatch_size: int = 8
    """Texts an optimizer step."""
    microbatch_size: int | None = 2
    """Texts a backward pass, for every way alike. None: the minibatch."""
    max_new_tokens: int = 48
    """Budget of a completion, tokens."""
    gradient_checkpointing: bool = True
    """For every way alike."""
    timeout_s: float = 1800.0
    """Seconds after which a run is given up."""


def number_of_letters(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward function that needs no memory."""
    return [float(len(completion)) for completion in completions]


def main(config: BenchmarkMemoryConfig) -> dict[str, Any]:
    """Run it; returns what ``summary.json`` holds: bytes beyond the trunk for each way, and adapters ÷ full."""
    reads = (config.model,)
    with RunDir(config.run_dir, script="benchmark_memory", overwrite=config.overwrite, reads=reads) as run:
        if config.model:
            trunk_bytes(Path(config.model))  # before the run begins: whether it loads
        run.begin(dataclasses.asdict(config))
        model = Path(config.model) if config.model else write_random_model(run.path / "trunk")
        prompts = run.path / "prompts.txt"
        prompts.write_text("\n".join(f"the film number {i} is about a" for i in range(2 * config.batch_size)) + "\n")
        weights = trunk_bytes(model)
        summary: dict[str, Any] = {"trunk_bytes": weights}
        for memory in config.memory:
            metrics = measure(config, memory, model, prompts, run.path / memory)
            beyond = metrics["peak_memory_bytes"] - weights
            summary[f"{memory}_peak_bytes"] = metrics["peak_memory_bytes"]
            summary[f"{memory}_beyond_trunk_bytes"] = beyond
            summary[f"{memory}_seconds_per_update"] = metrics["wall_s"] / config.updates
            print(f"{memory:10} {beyond / 2**20:8.0f} MiB beyond the trunk", flush=True)
        if "adapters" in config.memory and "full" in config.memory:
            summary["adapters_over_full"] = summary["adapters_beyond_trunk_bytes"] / summary["full_beyond_trunk_bytes"]
        run.write_json(SUMMARY, summary)
        return summary


def measure(config: BenchmarkMemoryConfig, memory: str, model: Path, prompts: Path, run_dir: Path) -> dict[str, Any]:
    """The summary of one run in a process of its own; RuntimeError if it fails."""
    threads = torch.get_num_threads()
    flags = {
        "--model": model,
        "--rows": prompts,
        "--memory": memory,
        "--reward": f"{__spec__.name if __spec__ else __name__}:{number_of_letters.__name__}",
        "--episodes": config.updates * config.batch_size,
        "--batch-size": config.batch_size,
        "--minibatch-size": config.minibatch_size,
        "--epochs": 1,
        "--max-new-tokens": config.max_new_tokens,
        "--learning-rate": "1e-5:0",
        "--num-eval-rows": 2,
        "--threads": threads,
        "--checkpoint-every": 10**6,
    }
    if config.microbatch_size is not None:
        flags["--microbatch-size"] = config.microbatch_size
    arguments = [part for flag in flags.items() for part in flag]
    arguments += ["--no-judge", *(["--gradient-checkpointing"] * config.gradient_checkpointing)]
    return run_once(run_dir, ["scripts.train_text", *arguments], threads=threads, timeout=config.timeout_s)


def trunk_bytes(folder: Path) -> int:
    """Bytes of the model's float32 weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    return sum(parameter.nbytes for parameter in model.parameters())


def write_random_model(folder: Path) -> Path:
    """A Llama of SmolLM2-135M's shape (arXiv:2502.02737, table 8) with random weights, and a tokenizer of its size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = ["<end>", "the", "film", "number", "is", "about", "a", *map(str, range(1000))]
    special = {name: "<end>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    word_tokenizer(numbered(words, 49152), **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


command_line = command(BenchmarkMemoryConfig, main, __doc__)
