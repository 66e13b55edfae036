"""The models of a text run, and how they share memory: the one that training starts from, and the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.loading import DTYPES, autocast_of, resolved
from agents.lm.lora import POLICY, AdaptedTrunk, LoraOptions
from agents.lm.sampling import TokenSampling
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.rlhf.task import TextTask
from textenvs import assets
from textenvs.lm.linear_kernels import round_weights
from textenvs.lm.loading import load_causal_lm
from textenvs.tokens.end_of_text import end_of_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class StartModels:
    """The model that training starts from, frozen, and its tokenizer."""

    path: str
    """Its directory or name."""
    start: CausalLMPolicy
    """With the sampling rules of the task."""
    plain: CausalLMPolicy
    """At temperature 1; the KL is measured against it."""
    adapters: AdaptedTrunk | None
    """The trunk that start, policy and rewards share, or None."""
    tokenizer: PreTrainedTokenizerBase


def model_path(task: TextTask) -> str:
    """Where the language model is loaded from: the task's, or the shipped one."""
    return str(assets.language_model_dir()) if task.model is None else task.model


def build_start(
    task: TextTask,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lora: LoraOptions | None = None,
    value_adapter: bool = False,
    compile: bool = False,
    device: str | None = None,
) -> StartModels:
    """The task's starting model, laid out as ``task.memory`` says; it ends texts where ``tokenizer`` does.

    With memory adapters a learner will train those of ``lora``, also one for the value with ``value_adapter``;
    ``device`` None is the task's. ValueError if no model or adapter can be loaded.
    """
    path, trunk, device = model_path(task), None, device or task.device
    if task.memory == "adapters":
        # A frozen weight is only ever read, and autocast would round it at each reading.
        model = load_causal_lm(path, dtype=DTYPES[resolved(task.dtype, task.device)]).to(device)
        trunk = AdaptedTrunk(model, lora, value=value_adapter, start=task.adapter)
    else:
        model = load_causal_lm(path).to(device)
        model.requires_grad_(False)

    def frozen(sampling: TokenSampling) -> CausalLMPolicy:
        return CausalLMPolicy(
            model,
            eos_token_id=end_of_text(model, tokenizer),
            critic="none",
            sampling=sampling,
            adapters=trunk,
            role=POLICY if trunk is None else trunk.reference,
            autocast=autocast_of(task.dtype, task.device),
            compile=compile,
        )

    start = frozen(TokenSampling(temperature=task.temperature))
    plain = start if task.temperature == 1.0 else frozen(TokenSampling())
    if start.autocast is not None and trunk is None and model.device.type != "cpu":
        round_weights(model, start.autocast)
    return StartModels(path=path, start=start, plain=plain, adapters=trunk, tokenizer=tokenizer)


def build_policy(config: TrainTextConfig, models: StartModels) -> CausalLMPolicy:
    """The policy that learns: new adapters over the shared trunk, or another copy of the starting model."""
    trunk = models.adapters
    return CausalLMPolicy(
        load_causal_lm(models.path).to(models.start.device) if trunk is None else trunk.model,
        eos_token_id=models.start.eos_token_id,
        critic=config.critic(config.memory),
        sampling=models.start.sampling,
        adapters=trunk,
        role=POLICY,
        autocast=autocast_of(config.dtype, config.device),
        recompute=config.gradient_checkpointing,
        compile=config.compile,
    )
