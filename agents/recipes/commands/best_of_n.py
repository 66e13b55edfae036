"""Score the best of n texts, n = 1, ..., 64: what reinforcement learning must beat, and needs no training.

    textenvs best-of-n --run-dir runs/best_of_n
    textenvs best-of-n --run-dir runs/best_of_n --model DIR --reward DIR --rows openings.txt

For every held-out prompt the model writes N texts. Of n texts the one that the reward scores highest is kept; its
score, and what the independent judge says of it, are averaged over all subsets of n of the N, which is unbiased
(`agents.evaluation.best_of_n_estimate`). `best_of_n.csv` has a line for every n with the same columns as a run's
`frontier.csv`:
`kl_per_sequence` is the bound log n - (n - 1) / n, and the win rate is against one more text of the same model.

The bound is of best-of-n against what the texts were drawn from: with a temperature other than 1, that is not the
model itself, against which `textenvs train-text` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.ranges import check_values
from agents.recipes.rlhf.task import TextTask
from agents.runs.cli import command


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(TextTask):
    """Run: folder and number of texts."""

    run_dir: str
    """Folder for best_of_n.csv, config.json and summary.json."""
    overwrite: bool = False
    """Throw away a finished run in that folder."""
    samples: int = 128
    """Texts to write for every prompt (N)."""
    max_n: int = 64
    """Largest n, at most `samples`; the nearer, the more the figure for it strays."""

    def __post_init__(self) -> None:
        check_values(self, {">= 1": "samples max_n"})
        if self.max_n > self.samples:
            raise ValueError(f"max_n must be from 1 to samples, received {self.max_n} of {self.samples}")
        TextTask.__post_init__(self)


command_line = command(BestOfNConfig, "agents.recipes.best_of_n:main", __doc__)
