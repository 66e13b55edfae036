"""Train a language model: supervised fine-tuning on data of your own (the first stage of RLHF), or a small one anew.

    textenvs train-language-model --run-dir runs/sft --model DIR --data my.jsonl
    textenvs train-language-model --run-dir runs/sft --model DIR --data my.jsonl --lora-rank 16
    textenvs train-language-model --run-dir runs/language_model

With `--model` and `--data` any causal LM with a key-value cache that transformers loads learns to complete prompts, to
answer in chats or to go on with texts. The held-out perplexity before, along and after, and what the model writes on
held-out prompts before and after, are in `summary.json`, `samples.json` and TensorBoard; `model/` is a checkpoint that
the later stages and `AutoModelForCausalLM.from_pretrained` load (with `--lora-rank` the merged one; `adapter/` holds
the change alone, for `train-text --memory adapters --adapter`).

Without `--model` a small GPT-2 and a lower-case byte-pair tokenizer are made anew: for movie-review sentences (what
the package ships), or for `--data`. Ctrl-C ends training after the step in progress, keeps what was learned, and leaves
a run that `--resume` goes on with bit for bit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from agents.ranges import changed, check_values
from agents.runs.cli import command
from agents.runs.flags import RunFlags, json_object

if TYPE_CHECKING:
    from reward_models.fit_options import FitOptions

SCRATCH: dict[str, Any] = {
    "max_length": 128, "batch_tokens": 2048, "learning_rate": 2.5e-3, "warmup_share": 0.02, "final_share": 0.05,
    "weight_decay": 0.1, "eval_every": 500,
}  # fmt: skip
"""A new model: the project's small GPT-2."""
ALPACA: dict[str, Any] = {
    "epochs": 3.0, "batch_size": 32, "learning_rate": 2e-5, "warmup_share": 0.03, "final_share": 0.0,
    "weight_decay": 0.0,
}  # fmt: skip
"""A pretrained model: the recipe of Stanford Alpaca (Taori et al. 2023), with a quarter of its batch."""
LORA_LEARNING_RATE = 2e-4
"""Dettmers et al. 2023 (arXiv:2305.14314), for models up to 13B."""

BETAS_SCRATCH, BETAS_PRETRAINED = (0.9, 0.95), (0.9, 0.999)
"""AdamW's, of a new model and of a pretrained one."""

NEW_MODELS = ("vocab_size", "num_layers", "width", "num_heads")
PRETRAINED = ("chat_template", "template_kwargs", "lora_rank", "lora_alpha")
OWN_DATA = (
    "heldout_data", "heldout_share", "heldout_rows", "too_long", "epochs", "batch_size", "microbatch_size",
    "microbatch_tokens", "dtype", "gradient_checkpointing", "keep", "num_samples", "sample_tokens", "shard",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Data: what is learned from."""

    data: str | None = None
    """File of rows (.jsonl, .json, .csv, .parquet), folder of `datasets`, or hub name ("owner/name:split"). Rows have
    `messages`, a list of {role, content} (the assistant's turns are learned), or else `prompt` and `completion` (the
    completion and its end of text are), or else `text` (everything is). None: movie reviews."""
    heldout_data: str | None = None
    """Such a file for evaluation. None: a share of `data` is held out."""
    heldout_share: float = 0.05
    """Share of the rows of `data` that is held out; no prompt is on both sides. 0: none, and nothing is evaluated."""
    heldout_rows: int = 500
    """Most rows that are held out, or read of `heldout_data`."""
    chat_template: bool = False
    """Put each prompt and completion into a chat as user's and assistant's turn, in the tokenizer's own template, as
    `train-text --chat-template` does with prompts."""
    template_kwargs: str | None = None
    """Variables of the chat template, a JSON object such as '{"enable_thinking": false}'; give each stage the same."""
    max_length: int | None = None
    """Longest row, tokens; of a new model the positions it has, too. None: 128; with `model` the positions it has."""
    too_long: Literal["refuse", "cut", "skip"] = "refuse"
    """What happens to longer rows; those that were cut (they lose their end of text) or skipped are counted."""


@dataclass(frozen=True, kw_only=True)
class _Optimization:
    """Optimization: how it is learned."""

    epochs: float | None = None
    """Passes over the rows. None: 3, unless `train_tokens` says how much."""
    train_tokens: int | None = None
    """Tokens to read in training, repeats and prompts included, instead of `epochs`. None: 9 million; with `data` see
    `epochs`."""
    batch_size: int | None = None
    """Rows an optimizer step. None: 32 with `model`, unless `batch_tokens` is given."""
    batch_tokens: int | None = None
    """Most tokens an optimizer step, instead of `batch_size`. None: 2048 for a new model."""
    microbatch_size: int | None = None
    """Most rows a backward pass; gradients add up to the whole batch's. None: no limit."""
    microbatch_tokens: int | None = None
    """Most positions a backward pass, padding included (a longer row goes alone). None: no limit."""
    learning_rate: float | None = None
    """Peak of AdamW's step size. None: 2.5e-3 for a new model, 2e-5 with `model`, 2e-4 with `lora_rank`."""
    warmup_share: float | None = None
    """Share of the steps in which the step size rises linearly. None: 0.02 for a new model, 0.03 with `model`."""
    final_share: float | None = None
    """Share of the peak to which a cosine lets it fall. None: 0.05 for a new model, 0 with `model`."""
    weight_decay: float | None = None
    """AdamW's weight decay on matrices. None: 0.1 for a new model, 0 with `model`."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of matrix products (autocast); log-softmax, loss, trained weights and optimizer are float32. With
    `lora_rank` the frozen model is loaded as this type, too. auto: bfloat16 on a CUDA device that has it."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, a third more time."""
    shard: Literal["none", "fsdp"] = "none"
    """What each of several processes holds: "none", the whole model; "fsdp", its part of each layer (torch's FSDP2),
    weights, gradients and optimizer states; see docs/recipes/processes.md."""
    lora_rank: int | None = None
    """Train a LoRA adapter of this rank; `train-text --memory adapters --adapter` starts from it. None: all weights."""
    lora_alpha: float = 32.0
    """The adapter's change is scaled by lora_alpha / lora_rank."""
    eval_every: int | None = None
    """Optimizer steps between evaluations. None: 500 for a new model; with `model` a tenth of the run."""
    checkpoint_every: int = 200
    """Optimizer steps between checkpoints."""
    keep: Literal["best", "last"] = "best"
    """Which weights are kept: those with the lowest held-out loss (a copy in memory), or the last."""


@dataclass(frozen=True, kw_only=True)
class TrainLanguageModelConfig(RunFlags, _Data, _Optimization):
    """Train a small language model from scratch, or fine-tune one on data of your own."""

    seed: int = 0
    """Seed of initialization, data order and what is held out."""
    device: str = "cpu"
    """Torch device."""
    threads: int | None = None
    """CPU threads of torch. None: its own choice."""
    model: str | None = None
    """Causal LM to start from: directory or name that transformers loads, with its tokenizer. None: a new GPT-2, and a
    tokenizer fitted on the data."""
    vocab_size: int = 2048
    """Entries of a new model's byte-pair vocabulary, the end-of-text token included."""
    num_layers: int = 4
    """Transformer blocks of a new model."""
    width: int = 192
    """Embedding width of a new model, a multiple of the number of heads."""
    num_heads: int = 4
    """Attention heads of a new model."""
    num_samples: int = 8
    """Held-out prompts that the model writes on before and after (samples.json, TensorBoard)."""
    sample_tokens: int = 48
    """Budget of each such completion, tokens."""

    def __post_init__(self) -> None:
        check_values(self, _RANGES)
        self._refuse_what_does_not_apply()
        json_object(self.template_kwargs)
        for one, other in (("epochs", "train_tokens"), ("batch_size", "batch_tokens")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} say the same thing in two ways: pass one of them")

    def _refuse_what_does_not_apply(self) -> None:
        if self.model is not None and self.data is None:
            raise ValueError("model needs data: a JSONL file to fine-tune it on")
        for names, given, reason in (
            (NEW_MODELS, self.model is not None, "is of a new model, and model names one that has its sizes"),
            (("lora_alpha",), self.lora_rank is None, "needs lora_rank: without an adapter there is nothing to scale"),
            (PRETRAINED, self.model is None, "needs model: a new model has neither chats nor weights worth freezing"),
            (OWN_DATA, self.data is None, "needs data: a JSONL file of your own; movie reviews have a fixed recipe"),
        ):
            if given and (wrong := changed(self, *names)):
                raise ValueError(f"{wrong[0]} {reason}")

    def settled(self) -> TrainLanguageModelConfig:
        """The same with the preset's values where None was left; what only the data can tell stays None."""
        preset = dict(SCRATCH if self.model is None else ALPACA)
        if self.lora_rank is not None:
            preset["learning_rate"] = LORA_LEARNING_RATE
        if self.data is None:
            preset["train_tokens"] = 9_000_000
        else:
            preset["epochs"] = ALPACA["epochs"]
        for one, other in (("epochs", "train_tokens"), ("batch_size", "batch_tokens")):
            if getattr(self, one) is not None or getattr(self, other) is not None:
                preset = {name: value for name, value in preset.items() if name not in (one, other)}
        missing = {name: value for name, value in preset.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def fit_options(self, num_steps: int) -> FitOptions:
        """How to fit in ``num_steps``; of settled settings."""
        from reward_models.fit_options import FitOptions

        values = dataclasses.asdict(self)
        given = {field.name: values[field.name] for field in fields(FitOptions) if field.name in values}
        given["eval_every"] = self.eval_every or max(1, num_steps // 10)
        return FitOptions(
            **given,
            num_steps=num_steps,
            betas=BETAS_SCRATCH if self.model is None else BETAS_PRETRAINED,
            keep_best=self.data is not None and self.keep == "best",
        )


_RANGES = {
    ">= 1": "train_tokens batch_size batch_tokens microbatch_size microbatch_tokens heldout_rows lora_rank eval_every "
    "checkpoint_every sample_tokens num_layers width num_heads threads",
    ">= 0": "weight_decay num_samples seed",
    "> 0": "epochs learning_rate lora_alpha max_grad_norm",
    ">= 2": "max_length",
    ">= 257": "vocab_size",  # each byte, and the end of text
    "in [0, 1)": "heldout_share",
    "in [0, 1]": "warmup_share final_share",
}


command_line = command(TrainLanguageModelConfig, "agents.recipes.sft.train:main", __doc__)
