"""What each training command's report shows: its curves, its figures, and the commands to go on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

CARTPOLE, CARTPOLE_THRESHOLD = "CartPole-v1", 475.0
"""The control task that stands before language models, and the mean return from which on it counts as solved."""


@dataclass(frozen=True)
class Line:
    """A column of `progress.csv`, with its band: ``scale`` times a column on both sides, or between two columns."""

    column: str
    name: str = ""
    band: str = ""  # what the band is
    error: str | None = None
    scale: float = 1.0
    between: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One panel: lines that share a unit."""

    title: str
    unit: str  # of the vertical axis
    lines: tuple[Line, ...]
    threshold: float | None = None  # a dashed line: from here on the task counts as solved


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of `summary.json`; of one that ends in ``_after`` the value before is that of ``_before``."""

    key: str
    label: str
    unit: str
    better: Literal[-1, 0, 1] = 0  # whether higher or lower is better; 0: neither
    column: str = ""  # of progress.csv, which has it while a run is not finished; default: that of the evaluations

    @property
    def stem(self) -> str:
        """The key without ``_after``."""
        return self.key.removesuffix("_after")

    @property
    def live(self) -> str:
        """Its column."""
        return self.column or f"eval/{self.stem}"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A training command."""

    unit: str  # of its steps
    length: str | None = None  # the setting that says how many there are
    curves: tuple[Curve, ...] = ()
    figures: tuple[Figure, ...] = ()
    commands: tuple[str, ...] = ()  # to go on with; {run} is the folder
    stages: tuple[tuple[str, str], ...] = ()  # folders of runs in it, and their titles


INTERVAL, DEVIATION = "95% interval of the mean", "± one standard deviation of episodes"


def held_out(column: str, *, error: bool = False) -> Line:
    """The same on held-out prompts."""
    if not error:
        return Line(f"eval/{column}", "held-out prompts")
    return Line(f"eval/{column}", "held-out prompts", INTERVAL, f"eval/{column}_se", 1.96)


def plain(column: str, title: str, unit: str) -> Curve:
    """A panel of one line."""
    return Curve(title=title, unit=unit, lines=(Line(column),))


TEXT_CURVES = (
    Curve(
        title="Score of the reward", unit="reward units",
        lines=(Line("rollout/score", "texts trained on"), held_out("score", error=True)),
    ),
    Curve(title="Score of the independent judge", unit="log-odds", lines=(held_out("judge", error=True),)),
    Curve(
        title="Held-out rows", unit="share right",
        lines=(
            Line("eval/accuracy", "likeliest tokens"),
            *(Line(f"eval/pass_at_{k}", f"pass@{k}") for k in (1, 4, 16)),
        ),
    ),
    Curve(
        title="KL to the start", unit="nats per sequence",
        lines=(Line("rollout/kl_per_sequence", "texts trained on, estimated"), held_out("kl_per_sequence")),
    ),
    plain("rollout/return_mean", "Return: rewards less the price of KL", "reward units"),
    Curve(
        title="Length", unit="tokens",
        lines=(
            Line("rollout/length_mean", "texts trained on", "10th to 90th percentile",
                 between=("rollout/length_p10", "rollout/length_p90")),
            held_out("mean_length"),
        ),
    ),
    Curve(
        title="Distinct bigrams", unit="share",
        lines=(Line("rollout/distinct_2", "within a text"), Line("eval/distinct2", "over all held-out texts")),
    ),
    Curve(title="Perplexity under the start", unit="per token", lines=(held_out("perplexity"),)),
    plain("train/entropy", "Entropy of the policy", "nats per token"),
    plain("train/clip_fraction", "Clip fraction", "share of tokens"),
    plain("train/explained_variance", "Explained variance of the critic", "share, at most 1"),
    plain("time/steps_per_second", "Speed", "texts per second"),
)  # fmt: skip
CONTROL_CURVES = (
    Curve(
        title="Return", unit="reward units per episode",
        lines=(
            Line("eval/return_mean", "greedy actions, evaluation", DEVIATION, "eval/return_std"),
            Line("rollout/return_mean", "sampled actions, last 100 episodes"),
        ),
    ),
    plain("train/entropy", "Entropy of the policy", "nats per step"),
    plain("train/explained_variance", "Explained variance of the critic", "share, at most 1"),
    plain("train/clip_fraction", "Clip fraction", "share of steps"),
    plain("train/surrogate_gain", "Gain of the surrogate", "reward units"),
    plain("time/steps_per_second", "Speed", "transitions per second"),
)  # fmt: skip
FIT_CURVES = (
    plain("train/loss", "Training loss", "nats per token"),
    plain("validation/loss", "Held-out loss", "nats per token"),
    plain("validation/perplexity", "Held-out perplexity", "per token"),
    plain("train/tokens_per_s", "Speed", "tokens per second"),
)
REWARD_CURVES = (
    plain("train/loss", "Training loss", "nats per comparison"),
    plain("validation/loss", "Held-out loss", "nats per comparison"),
    plain("train/pairs_per_s", "Speed", "comparisons per second"),
)
SECONDS = Figure(key="wall_s", label="Time of training", unit="s", better=-1)
TEXT_FIGURES = (
    Figure(key="score_after", label="Score of the reward", unit="reward units", better=1),
    Figure(key="accuracy_after", label="Held-out rows right, likeliest tokens", unit="share", better=1),
    Figure(key="judge_win_rate", label="Judge prefers the tuned text", unit="share, ties half", better=1),
    Figure(key="kl_per_sequence", label="KL to the start", unit="nats per sequence"),
    Figure(key="mean_length_after", label="Length", unit="tokens"),
    *(Figure(key=f"pass_at_{k}_after", label=f"pass@{k}", unit="share", better=1) for k in (1, 2, 4, 8, 16)),
    Figure(key="judge_after", label="Score of the independent judge", unit="log-odds", better=1),
    Figure(key="distinct2_after", label="Distinct bigrams over all texts", unit="share"),
    Figure(key="perplexity_after", label="Perplexity under the start", unit="per token"),
    Figure(key="response_tokens_per_s", label="Speed", unit="tokens per second", better=1),
    SECONDS,
)
KINDS = {
    "train_control": Kind(
        unit="transitions", length="total_steps", curves=CONTROL_CURVES,
        figures=(
            Figure(key="eval_return_mean", label="Return, greedy", unit="reward units per episode", better=1,
                   column="eval/return_mean"),
            Figure(key="best_return_mean", label="Best return while training", unit="reward units per episode",
                   better=1),
            Figure(key="steps", label="Trained on", unit="transitions"),
            SECONDS,
        ),
        commands=("textenvs evaluate --agent {run} --episodes 100",
                  "textenvs train-control --run-dir {run} --resume --total-steps MORE"),
    ),
    "train_text": Kind(
        unit="texts", length="episodes", curves=TEXT_CURVES, figures=TEXT_FIGURES,
        commands=(
            "textenvs evaluate --agent {run}", "textenvs frontier --run-dir {run}",
            "textenvs train-text --run-dir {run} --resume --episodes MORE",
            "ls {run}/model  # what transformers.AutoModelForCausalLM.from_pretrained loads",
        ),
    ),
    "train_language_model": Kind(
        unit="optimizer steps", curves=FIT_CURVES,
        figures=(
            Figure(key="perplexity_after", label="Held-out perplexity", unit="per token", better=-1,
                   column="validation/perplexity"),
            Figure(key="validation_perplexity", label="Held-out perplexity", unit="per token", better=-1),
            Figure(key="heldout_loss_after", label="Held-out loss", unit="nats per token", better=-1),
            Figure(key="tokens_per_s", label="Speed", unit="tokens per second", better=1),
            SECONDS,
        ),
        commands=("textenvs train-reward-model --run-dir RUN --model {run}/model",
                  "textenvs train-text --run-dir RUN --model {run}/model"),
    ),
    "train_reward_model": Kind(
        unit="optimizer steps", curves=REWARD_CURVES,
        figures=(
            Figure(key="pair_accuracy_gap1", label="Accuracy, mean ratings at least 1 apart", unit="share", better=1),
            Figure(key="pair_accuracy", label="Accuracy on held-out comparisons", unit="share", better=1),
            Figure(key="human_pair_accuracy", label="One human rater, for comparison", unit="share"),
            Figure(key="calibration_error", label="Calibration error", unit="probability", better=-1),
            Figure(key="correlation_with_length", label="Correlation of score and length", unit="in [−1, 1]"),
            Figure(key="disagreement", label="Disagreement of the members", unit="score units"),
            SECONDS,
        ),
        commands=("textenvs train-text --run-dir RUN --reward {run}/model",),
    ),
    "pipeline": Kind(
        unit="", commands=("textenvs evaluate --agent {run}/ppo", "textenvs frontier --run-dir {run}/ppo"),
        figures=(SECONDS,),
        stages=(("ppo", "Reinforcement learning"), ("reward_model", "Reward model"), ("fine_tuned", "Fine-tuning")),
    ),
    "demo": Kind(
        unit="", commands=("textenvs evaluate --agent {run}/text", "textenvs frontier --run-dir {run}/text"),
        figures=(SECONDS,),
        stages=(("text", "PPO on the language model"), ("reward_model", "Reward model"), ("cartpole", CARTPOLE)),
    ),
}  # fmt: skip
"""Name of the command in a run's folder to what its report shows."""


def curves_of(kind: Kind, env: object) -> Sequence[Curve]:
    """Its curves; those of CartPole with the threshold."""
    first, *others = kind.curves or (None,)
    if first is None or env != CARTPOLE:
        return kind.curves
    return [replace(first, threshold=CARTPOLE_THRESHOLD), *others]
