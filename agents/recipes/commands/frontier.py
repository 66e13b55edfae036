"""Draw the frontier between KL and reward of one run or several, best-of-n beside them, and say how much KL to take.

    textenvs frontier --run-dir runs/text
    textenvs frontier --run-dir runs/ppo runs/grpo --out runs/frontier

A run that was trained with `textenvs train-text` has measured itself on held-out prompts along the way (`frontier.csv`,
`--evaluate-every`). Shown against d = sqrt(KL): the gain in the reward that was trained on (the proxy), and in what the
independent judge says of the same texts, with the curves of Gao et al. 2022 (arXiv:2210.10760) fitted to both. Where
the judge's curve turns down, more KL buys reward that is not real. Gains are over the mean of all the texts that the
starting model wrote for best-of-n, which strays less than one text a prompt does.

`kl_efficiency` is the gain in reward that a run has for `--budget` nats, by that of the best of 64 texts, whose KL is
at most 3.17: 1 is as good as choosing among 64 texts, at the price of one. It is read where the run last spends no more
than the budget (see `agents.evaluation.gao_fit.at_budget`).

The best of n is measured once for a task and kept in the first run's `best_of_n/`; what lies there is refused if its
largest n is not 64, or its `--samples` are not those that are asked for. The pictures go to the run's `frontier/`:
frontier.png, frontier.json (every point, every fit), summary.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents.ranges import check_values
from agents.recipes.commands.best_of_n import BestOfNConfig
from agents.runs.cli import command


@dataclass(frozen=True, kw_only=True)
class FrontierConfig:
    """Draw the frontier between KL and reward."""

    run_dir: tuple[Path, ...]
    """runs of train-text, of one task"""
    out: Path | None = None
    """folder for frontier.png, frontier.json and summary.json; None: `frontier` in the first run's folder"""
    overwrite: bool = False
    """throw away what was drawn there before"""
    best_of_n: Path | None = None
    """folder of best-of-n; measured if there is nothing. None: `best_of_n` in the first run's folder"""
    samples: int | None = None
    """texts to write for every prompt, 64 or more, if best-of-n is to be measured, or that it was measured with. None:
    128, or as many as it was"""
    budget: float = 3.2
    """nats per sequence at which a run is compared with the best of 64"""

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ValueError("run_dir needs at least one run")
        if self.samples is not None and self.samples < BestOfNConfig.max_n:
            raise ValueError(
                f"samples must be at least {BestOfNConfig.max_n}, of which the best is compared with, "
                f"received {self.samples}"
            )
        check_values(self, {"> 0": "budget"})


command_line = command(FrontierConfig, "agents.recipes.frontier:main", __doc__)
