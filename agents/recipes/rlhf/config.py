"""The settings of `scripts.train_text`, each with its unit; the defaults are the project's preset for movie reviews."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from agents.recipes.rlhf.algorithm_flags import AlgorithmFlags
from textenvs.wrappers.combining import check_combination


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """What is written, after which prompts, and who scores it: the task, whoever solves it and however."""

    model: str | None = None
    """Causal LM to start from: directory or name that transformers loads, with its tokenizer. None: the project's."""
    reward_model: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """The directory of a reward model or of an ensemble (see scripts.train_reward_model), or `module:function` of
    (prompts, completions) -> scores. Repeat the flag for several, in any mixture. None: the project's."""
    reward_combine: Literal["mean", "worst", "uncertainty"] = "mean"
    """How the scores of several, an ensemble's members each for itself, become one: their mean, the least, or the mean
    less reward_uncertainty_coef times their variance (Coste et al. 2023, arXiv:2310.02743)."""
    reward_weights: tuple[float, ...] = ()
    """A mixture: one number for each reward_model, in their order, by which its score is multiplied before all are
    added (an ensemble's score is its members' mean). They need not sum to 1; negative ones punish, 0 only watches.
    None: no weights."""
    reward_uncertainty_coef: float = 0.1
    """Price of the variance with reward_combine uncertainty, per reward unit."""
    prompts: str | None = None
    """Text file (a prompt a line) or JSONL (a field `prompt`); a tenth is held out. None: openings of movie reviews."""
    chat_template: bool = False
    """Put each prompt into a chat as the user's turn, in the tokenizer's own template; scorers read the bare turn."""
    eval_prompts: str | None = None
    """File of prompts for the comparison before/after; needs `prompts`. None: those held out."""
    num_eval_prompts: int = 400
    """Prompts that are written on before and after training; all that there are, if there are fewer."""
    judge: bool = True
    """Whether the independent judge compares before and after (needs the demo extra). It knows praise from blame in
    movie reviews, and nothing else: of other texts its figures mean nothing."""
    seed: int = 0
    """Seed of prompts' order, tokens drawn and minibatches."""
    device: str = "cpu"
    """Torch device."""
    threads: int | None = None
    """CPU threads of torch. None: its own choice."""
    memory: Literal["full", "shared", "adapters"] = "shared"
    """How the models live. full: the critic and the reference are copies of the model. shared: the value head reads
    the policy's trunk, the reference is a copy. adapters: one frozen trunk; policy and value are LoRA adapters (so is a
    reward model that is one over the same trunk), and the reference is the trunk with adapters off."""
    adapter: str | None = None
    """Folder of a LoRA adapter to start from; frozen, it is also the reference (memory adapters). None: a new one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of matrix products in rollout and update (autocast); log-softmax, values, losses, adapters and optimizer are
    float32. With memory adapters the frozen trunk is loaded as this type, too."""
    max_new_tokens: int = 24
    """Budget of a completion, tokens."""
    temperature: float = 1.0
    """Of sampling, in training and evaluation alike."""

    @property
    def reads(self) -> tuple[str | None, ...]:
        """Files and folders that the task is read from, and names of what lies elsewhere."""
        return (self.model, *self.reward_model, self.prompts, self.eval_prompts, self.adapter)


@dataclass(frozen=True, kw_only=True)
class TrainTextConfig(TextTask, AlgorithmFlags):
    """Tune a language model by reinforcement learning on a preference reward."""

    run_dir: str
    """Folder for the model, checkpoints, TensorBoard events, progress.csv, samples.json and summary.json."""
    overwrite: bool = False
    """Throw away a finished run in that folder."""
    resume: bool = False
    """Go on with the unfinished run in that folder; all other settings must be its own."""
    episodes: int = 8192
    """Texts to write and learn from, rounded up to whole batches."""
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
    plan: bool = False
    """Print the bytes that each role will take under each `memory`, and stop; nothing is allocated or written."""
    checkpoint_every: int = 10
    """Updates between checkpoints."""
    evaluate_every: int | None = None
    """Updates between evaluations along the run (eval/... and frontier.csv). None: eight a run; 0: before and after
    training only."""

    def __post_init__(self) -> None:
        AlgorithmFlags.__post_init__(self)
        if isinstance(self.reward_model, str):
            raise ValueError(f"reward_model takes several: write ({self.reward_model!r},) for one")
        for name in ("reward_model", "reward_weights"):  # lists, where they come out of a config.json
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_combination(
            self.reward_combine,
            self.reward_weights or None,
            self.reward_uncertainty_coef,
            num_scorers=max(1, len(self.reward_model)),
        )
        for name in ("num_eval_prompts", "episodes", "checkpoint_every", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        if self.max_concurrent_rows is not None and self.max_concurrent_rows < 1:
            raise ValueError(
                f"max_concurrent_rows must be at least 1, or None for all at once, received {self.max_concurrent_rows}"
            )
        if self.evaluate_every is not None and self.evaluate_every < 0:
            raise ValueError(f"evaluate_every must be 0 or more updates, received {self.evaluate_every}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, received {self.seed}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, received {self.temperature}")
        self._refuse_what_nobody_reads()
        if self.critic_start == "reward-model" and self.critic not in ("separate", "adapter"):
            raise ValueError(
                "critic_start reward-model needs a critic of its own, memory full or adapters with value_adapter; "
                f"received memory {self.memory}, algorithm {self.algorithm}, value_adapter {self.value_adapter}"
            )
        if self.lora_rank < 1 or not self.lora_alpha > 0:
            raise ValueError(f"lora_rank must be >= 1, lora_alpha > 0, received {self.lora_rank}, {self.lora_alpha}")
        if self.eval_prompts is not None and self.prompts is None:
            raise ValueError("eval_prompts needs prompts: both are files of your own, or neither")

    def _refuse_what_nobody_reads(self) -> None:
        of_adapters = ("adapter", "lora_rank", "lora_alpha", "value_adapter")
        without = self.memory != "adapters" and not self.plan  # a plan is of every memory
        unread = [name for name in of_adapters if without and self._changed(name)]
        if unread:
            raise ValueError(f"{', '.join(unread)}: this needs memory adapters, received memory {self.memory}")
        unread = [name for name in ("lora_rank", "lora_alpha") if self.adapter is not None and self._changed(name)]
        if unread:
            raise ValueError(f"{', '.join(unread)}: the adapter that training starts from has its own; leave this out")
        if self.reward_combine != "uncertainty" and self._changed("reward_uncertainty_coef"):
            raise ValueError(
                f"reward_uncertainty_coef is of reward_combine uncertainty, received {self.reward_combine}"
            )

    @property
    def critic(self) -> str:
        """Where the value head reads, as `CausalLMPolicy` calls it."""
        if not self.agent_config().uses_critic:
            return "none"
        if self.memory == "adapters":
            return "adapter" if self.value_adapter else "shared"
        return "separate" if self.memory == "full" else "shared"
