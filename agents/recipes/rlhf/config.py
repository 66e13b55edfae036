"""Tune a language model against a reward model by PPO, GRPO, RLOO or REINFORCE, near to the model it started from.

    textenvs train-text --run-dir runs/text
    textenvs train-text --run-dir runs/grpo --algorithm grpo
    textenvs train-text --run-dir runs/mine --model DIR --reward DIR --rows openings.txt
    textenvs train-text --run-dir runs/right --algorithm grpo --model DIR --rows train.jsonl --reward my_module:right
    textenvs train-text --run-dir runs/game --model DIR --env my_module:MyGame --turns 8 --turn-tokens 16 --credit turn
    textenvs train-text --run-dir runs/none --model DIR --memory adapters --plan
    accelerate launch --num_processes 4 -m scripts.train_text --run-dir runs/four --device cuda

Defaults below are those of --algorithm, PPO's unless another is given. Prompts are openings of held-out movie-review
sentences, or lines of a file of your own. Before and after training the model writes on prompts that training never
sees; `summary.json` compares the two (with a function or a ready reward also by accuracy and pass@k), `samples.json`
shows them side by side, and `model/` is a checkpoint that `AutoModelForCausalLM.from_pretrained` loads (with `--memory
adapters` the merged one; `adapter/` holds the change alone, for peft). Ctrl-C ends training after the update in
progress, keeps what was learned, and leaves a run that `--resume` goes on with bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from agents.functional.schedules import Schedule
from agents.ranges import changed, check_values, refuse_changed
from agents.recipes.rlhf.presets import run_settings
from agents.recipes.rlhf.task import EpisodeSettings, Memory, TextTask
from agents.runs.cli import enter, peek
from agents.runs.flags import RunFlags
from agents.text.config import PAPERS, Algorithm, Paper, TextAgentConfig, paper_settings
from agents.text.kl_controllers import AdaptiveKL, AnnealedKL, KLController
from agents.text.presets import ANOTHER_WAY, PRESETS, learning_rate_for

if TYPE_CHECKING:
    from agents.text.score_scaling import ScoreScaler

_NAMES: PrimitiveConstructorSpec[Algorithm] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="{" + ",".join(PAPERS) + "}",
    instance_from_str=lambda words: paper_settings(words[0])["algorithm"],  # type: ignore[arg-type]
    is_instance=lambda value: value in PAPERS,
    str_from_instance=lambda value: [value],
    choices=tuple(PAPERS),
)
"""On the command line every paper's name stands for its algorithm, and for the other flags' defaults."""
OF_ADAPTERS = ("adapter", "lora_rank", "lora_alpha", "value_adapter")


@dataclass(frozen=True, kw_only=True)
class RunSettings(RunFlags):
    """Run: how long, and how often it is evaluated and saved."""

    episodes: int = 8192
    """Texts to write and learn from, rounded up to whole batches."""
    batch_size: int = 256
    """Texts an update."""
    checkpoint_every: int = 10
    """Updates between checkpoints."""
    evaluate_every: int | None = None
    """Updates between evaluations along the run (eval/... and frontier.csv). None: eight a run; 0: before and after
    training only."""
    eval_samples: int = 4
    """Texts sampled for each held-out row, from which pass@k is estimated (k = 1, 2, 4, ... and all of them); accuracy
    is that of one more text, of the likeliest tokens. Needs `rows`, and a function or a ready reward as the first."""
    pass_score: float = 1.0
    """Least score by the first reward with which a text is right, for accuracy and pass@k."""
    stop_on: str | None = None
    """Monitors of reward hacking that end the run at an alarm, at the last checkpoint before it: any, or names such as
    length,shortcut. None: they only warn."""

    def __post_init__(self) -> None:
        if self.stop_on is not None:
            from agents.evaluation.monitoring import monitor_names  # brings Gymnasium, for which --help need not wait

            monitor_names(self.stop_on)
        check_values(self, {">= 1": "episodes batch_size checkpoint_every eval_samples", ">= 0": "evaluate_every"})


@dataclass(frozen=True, kw_only=True)
class KLSettings:
    """KL: its coefficient."""

    beta: float = 0.155
    """Price of the KL, reward units per nat (where it starts, if kl_target moves it)."""
    beta_start: float | None = None
    """Price that the first texts pay; from there it goes in a straight line to beta. None: beta throughout."""
    beta_share: float = 0.5
    """Share of the episodes in which it gets there, (0, 1]."""
    kl_target: float | None = None
    """Nats per sequence that an adaptive price aims at (Ziegler et al. 2019). None: the price is fixed."""
    kl_horizon: int = 2560
    """Episodes over which the adaptive price reacts."""

    def __post_init__(self) -> None:
        ranges = {">= 0": "beta beta_start", "> 0": "kl_target", ">= 1": "kl_horizon", "in (0, 1]": "beta_share"}
        check_values(self, ranges)
        if self.kl_target is not None and not self.beta > 0:
            raise ValueError(
                f"kl_target multiplies the price, and from beta {self.beta:g} it never moves: begin above 0"
            )
        unread = [
            f"{name} is of {of}"
            for name, of in (("kl_horizon", "kl_target"), ("beta_share", "beta_start"))
            if getattr(self, of) is None and changed(self, name)
        ]
        if unread:
            raise ValueError("; ".join(unread) + ", which is not given")
        if self.beta_start is not None and self.kl_target is not None:
            raise ValueError("beta_start and kl_target both move the price: leave one of them out")
        self.kl_controller(episodes=1)

    def kl_controller(self, episodes: int) -> KLController | None:
        """What moves the KL's price in a training of so many ``episodes``."""
        if self.kl_target is not None:
            return AdaptiveKL(target=self.kl_target, horizon=self.kl_horizon)
        if self.beta_start is not None:
            return AnnealedKL(start=self.beta_start, end=self.beta, horizon=self.beta_share * episodes)
        return None


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Rewards: what a score is turned into before it is paid."""

    normalize_scores: bool = False
    """Scores less their running mean, by their running standard deviation, before they are paid."""
    score_clip: float | None = None
    """Scores are clipped to this absolute value, reward units, or deviations with normalize_scores. None: not."""
    missing_eos_penalty: float = 0.0
    """Reward units taken from texts that ran out of budget."""
    overlong_penalty: float = 0.0
    """Reward units taken from texts as long as the budget; from shorter ones less, in proportion to how far they reach
    into the budget's last overlong_cache tokens (DAPO, arXiv:2503.14476, eq. 13)."""
    overlong_cache: int | None = None
    """Tokens. None: a fifth of the budget, as in that paper."""

    def __post_init__(self) -> None:
        ranges = {">= 0": "missing_eos_penalty overlong_penalty", "> 0": "score_clip", ">= 1": "overlong_cache"}
        check_values(self, ranges)
        if self.overlong_cache is not None and not self.overlong_penalty:
            raise ValueError("overlong_cache needs overlong_penalty, which is 0")

    def score_scaler(self) -> ScoreScaler | None:
        """What turns scores into what is paid."""
        if self.score_clip is None and not self.normalize_scores:
            return None
        from agents.text.score_scaling import ScoreScaler

        return ScoreScaler(standardize=self.normalize_scores, limit=self.score_clip)


@dataclass(frozen=True, kw_only=True)
class LayoutSettings:
    """Memory: adapters and the critic, and what trades time for memory."""

    lora_rank: int = 16
    """Rank of new adapters (memory adapters)."""
    lora_alpha: float = 32.0
    """An adapter's change is scaled by lora_alpha / lora_rank (memory adapters)."""
    value_adapter: bool = True
    """Whether the value has an adapter of its own, which costs a second pass in the update; else its head reads the
    policy's hidden states, and its loss moves the policy's adapter, too (memory adapters)."""
    critic_start: Literal["model", "reward-model"] = "model"
    """What a critic of its own (memory full, or an adapter) begins as: the model to be tuned with a head of zeros, or
    the first reward model, head included (Stiennon et al. 2020), which knows from the first text on what is good. Its
    values equal the rewards if prompts open with a bos token, as the reward model's texts do; else they are near."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, a third more time."""
    max_concurrent_rows: int | None = None
    """Texts written at a time, in training and evaluation: the cache of keys and values is no larger, and a text that
    ended makes room for the next. What is written stays the same, up to rounding. None: all at once."""
    compile: bool = False
    """Run the update's and the reference's passes through torch.compile; decoding does without. The first passes take
    a minute, and on the CPU this was measured on nothing is gained."""
    shard: Literal["none", "fsdp"] = "none"
    """What each of several processes holds: "none", all of policy, critic and reference; "fsdp", its part of each layer
    (torch's FSDP2), weights, gradients and optimizer states; see docs/recipes/processes.md."""
    shard_rollouts: bool = True
    """With shard: gather the policy's weights layer by layer for each token that is written; False: all at once for
    each batch of texts, which is faster and takes the memory of one whole model."""
    offload: bool = False
    """With shard: weights, gradients and optimizer states rest in the CPU's memory."""
    plan: bool = False
    """Print the bytes that each role will take under each `memory`, or with shard fsdp in each of 1, 2, 4 and 8
    processes, and stop; nothing is allocated or written."""

    def __post_init__(self) -> None:
        check_values(self, {">= 1": "max_concurrent_rows lora_rank", "> 0": "lora_alpha"})
        if self.shard == "none":
            refuse_changed(self, ("shard_rollouts", "offload"), "this needs shard fsdp, received shard none")
        elif self.compile:
            raise ValueError("compile: expected False with shard fsdp, whose layers come and go, received True")

    def critic(self, memory: Memory) -> str:
        """Where a value head reads under ``memory``, as `CausalLMPolicy` calls it."""
        if memory == "adapters":
            return "adapter" if self.value_adapter else "shared"
        return "separate" if memory == "full" else "shared"


@dataclass(frozen=True, kw_only=True)
class TrainTextConfig(
    RunSettings, TextTask, EpisodeSettings, KLSettings, ScoreSettings, LayoutSettings, TextAgentConfig
):
    """Tune a language model by reinforcement learning; ``preset`` fills in what the algorithm starts from."""

    algorithm: Annotated[Algorithm, _NAMES] = "ppo"
    """PPO, GRPO, RLOO or REINFORCE; or a variant, which sets other flags' defaults: GRPO as dr_grpo, dapo, gspo, cispo
    or reinforce++_baseline, REINFORCE as reinforce++. The papers of the first four charge no KL: beta 0."""

    learning_rate: Schedule | None = None  # type: ignore[assignment]
    """Adam's step size, a constant or START:END. None: the preset's, divided by 40 for a model of more than 10 million
    parameters and by 400 for one of more than a billion; ten times that with memory adapters."""

    @classmethod
    def preset(cls, algorithm: Paper = "ppo", **changed: Any) -> TrainTextConfig:
        """The algorithm's preset for movie reviews (``agents.text.presets``), but for what is ``changed``."""
        return cls(**run_settings(algorithm, changed))

    def __post_init__(self) -> None:
        for part in TrainTextConfig.__bases__:
            part.__post_init__(self)  # type: ignore[attr-defined]
        check_values(self, {"> 0": "learning_rate"})
        if self.batch_size % self.group_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of group_size {self.group_size}")
        if self.shard != "none" and self.async_rollouts and self.engine is None:
            raise ValueError(
                "async_rollouts: expected 0 with shard fsdp and no engine: a copy would gather layers, too"
            )
        if self.shard != "none" and self.engine and self.memory == "adapters" and self.engine_weights == "full":
            raise ValueError('engine_weights: expected "adapter" with shard fsdp: a sharded trunk is not merged')
        if self.policy_loss == "plain" and (self.minibatch_size or self.batch_size) < self.batch_size:
            raise ValueError(
                f"the plain policy gradient holds for one step a batch: minibatch_size {self.minibatch_size} is "
                f"below batch_size {self.batch_size}; microbatch_size bounds the memory, policy_loss clipped allows it"
            )
        if self.kl_target is not None and not self.kl_horizon > 0.2 * self.batch_size:
            raise ValueError(
                f"kl_horizon must exceed a fifth of batch_size {self.batch_size}, received {self.kl_horizon}: the "
                "price could fall below 0"
            )
        if self.memory != "adapters" and not self.plan:
            refuse_changed(self, OF_ADAPTERS, f"this needs memory adapters, received memory {self.memory}")
        if self.adapter is not None:
            why = "the adapter that training starts from has its own; leave this out"
            refuse_changed(self, ("lora_rank", "lora_alpha"), why)
        own = self.uses_critic and self.critic(self.memory) in ("separate", "adapter")
        if self.critic_start == "reward-model" and not own:
            raise ValueError(
                "critic_start reward-model needs a critic of its own, memory full or adapters with value_adapter; "
                f"received memory {self.memory}, algorithm {self.algorithm}, value_adapter {self.value_adapter}"
            )

    def critic(self, memory: Memory) -> str:
        """Where the value head reads under ``memory``, as `CausalLMPolicy` calls it."""
        return LayoutSettings.critic(self, memory) if self.uses_critic else "none"

    def settled(self, num_parameters: int) -> TrainTextConfig:
        """The same with the learning rate for a model of so many parameters, where none was given."""
        if self.learning_rate is not None:
            return self
        rate = learning_rate_for(self.algorithm, num_parameters, adapters=self.memory == "adapters")
        return replace(self, learning_rate=rate)

    def agent_config(self) -> TextAgentConfig:
        """The agent's part of the settings, once they are settled."""
        return TextAgentConfig(**{field.name: getattr(self, field.name) for field in fields(TextAgentConfig)})


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; returns the exit code: 0, 2 on bad input, 130 after Ctrl-C."""
    seen = peek(arguments, "algorithm", "kl_estimator", "model", "reward", *ANOTHER_WAY, repeated="reward")
    asked = seen.pop("algorithm", "ppo")
    given = {name: value or True for name, value in seen.items()}  # a switch at the end has no value
    algorithm: Paper = next((each for each in PRESETS if each == asked), "ppo")  # an unknown one is refused below
    return enter(
        TrainTextConfig,
        "agents.recipes.rlhf.train:main",
        description=__doc__,
        arguments=arguments,
        defaults={
            name: value
            for name, value in run_settings(algorithm, given).items()
            if name not in given or name == "kl_estimator"  # of the others there are only words yet
        },
    )
