"""Fit a reward model on human preferences by the Bradley–Terry likelihood.

    textenvs train-reward-model --run-dir runs/reward_model
    textenvs train-reward-model --run-dir runs/mine --model DIR --pairs my.jsonl --heldout-pairs heldout.jsonl
    textenvs train-reward-model --run-dir runs/ensemble --members 4 --lora-rank 8

Without ``--pairs`` it learns from the Hutto & Gilbert ratings of movie snippets, rater against rater, starting from
the project's small language model. A fifth of the snippets is held out for the figures; a tenth of the others, the
validation part, is what early stopping and calibration look at. With ``--members`` it fits several models, one after
the other, that differ by their seeds, and keeps them as an ensemble; with ``--lora-rank`` they are adapters over one
language model. ``reliability.json`` and ``reliability.png`` show how sure the result is where it is right. Ctrl-C ends
training after the step in progress, keeps the best weights so far and the members that were fitted, and leaves a run
that ``--resume`` continues bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from agents.ranges import check_values
from agents.runs.cli import command
from agents.runs.flags import RunFlags
from reward_models.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class TrainRewardModelConfig(RunFlags):
    """Fit a reward model on human preferences."""

    model: str | None = None
    """The language model to start from: a directory, or a name, that transformers loads; with its tokenizer. None: the
    shipped one."""
    model_dir: str = ""
    """Folder for the reward model; with overwrite a reward model there is replaced. Default: `model` inside the run
    directory."""
    pairs: str = ""
    """Preference pairs (prompt, chosen, rejected, maybe margin): a JSONL, JSON, CSV or parquet file, or a data set of
    the hub, "owner/name:split". Default: the movie ratings."""
    heldout_pairs: str = ""
    """Pairs for the figures, in the same forms. Default: a tenth of `pairs` that shares no text or prompt with the
    rest."""
    too_long: Literal["refuse", "cut", "skip"] = "refuse"
    """What becomes of `pairs` with a text of more tokens than the model has positions: cut leaves its beginning out."""
    words: bool = True
    """Learn from the human ratings of single words in the same archive, too (movie ratings only)."""
    group_size: int = 64
    """Rated snippets compared with one another in one optimizer step, or, for `pairs`, pairs an optimizer step."""
    seed: int = 0
    """Seed of the head's initialization, order, dropout and noise; it replaces `training.seed`. Member i of an ensemble
    has seed + 1000 i."""
    device: str = "cpu"
    """Torch device."""
    members: int = 1
    """Models to fit, each with a seed of its own. More than 1: the folder holds an ensemble, which `train-text` takes
    like a single model (4 or 5 are usual: Coste et al. 2023, arXiv:2310.02743)."""
    lora_rank: int | None = None
    """Train a LoRA adapter of this rank and the head only; `train-text --memory adapters` shares its trunk then. None:
    all weights."""
    shard: Literal["none", "fsdp"] = "none"
    """What each of several processes holds: "none", the whole model; "fsdp", its part of each layer (torch's FSDP2),
    weights, gradients and optimizer states; see docs/recipes/processes.md."""
    checkpoint_every: int = 100
    """Optimizer steps between checkpoints to resume from."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """How to fit."""

    def __post_init__(self) -> None:
        check_values(self, {">= 1": "members group_size checkpoint_every lora_rank", ">= 0": "seed"})
        check_values(self.training)
        if self.training.seed:
            raise ValueError(f"training.seed: expected --seed, which takes its place, received {self.training.seed}")
        if self.shard != "none":
            self.check_shared()
        if self.heldout_pairs and not self.pairs:
            raise ValueError("heldout_pairs needs pairs: movie ratings have held-out snippets of their own")
        if self.pairs and not self.words:
            raise ValueError("words are of the movie ratings, and pairs are learned from instead: leave no-words out")

    def check_shared(self) -> None:
        """Raise ValueError for settings under which several processes would not fit what one does."""
        if self.members > 1:
            raise ValueError(
                f"members: expected 1 where processes share a model, received {self.members}: fit each with a "
                "seed of its own, and score by all of them (train-text --reward, repeated)"
            )
        if self.training.drops:
            rate = self.training.dropout or self.training.attention_dropout
            raise ValueError(
                f"training.dropout: expected 0 where processes share a model, received {rate}: each would drop other "
                "units than one process does"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Files and folders that the run is made from."""
        return tuple(path for path in (self.model, self.pairs, self.heldout_pairs) if path)


command_line = command(TrainRewardModelConfig, "agents.recipes.reward_model:main", __doc__)
