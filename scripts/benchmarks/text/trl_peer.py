"""TRL's PPO or GRPO on the models that ours are measured on. Run by a Python that has TRL; imports nothing of ours.

    PEER_PYTHON -I scripts/benchmarks/text/trl_peer.py job.json

TRL's last release with PPO (0.29.1) and its newest GRPO need different environments, so this file knows both. The job
is one JSON object, see ``JOB``. With ``on_demand`` each line on standard input asks for one update, whose figures are
answered as a line of JSON.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

JOB: dict[str, Any] = {
    "algorithm": "ppo",  # or "grpo"
    "lm": None,  # folder of the language model and tokenizer
    "reward_model": None,  # folder of the reward model, as ours saves it
    "free_reward": True,  # whether a reward that costs nothing takes its place; GRPO only, as the next three
    "prompts": None,  # JSON file: lists of token ids
    "pad_token_id": 0,  # one that no text contains
    "rows": 64,  # texts an update
    "minibatches": 4,  # optimizer steps a pass
    "epochs": 4,  # passes over each batch
    "new_tokens": 48,  # budget of a completion
    "group_size": 8,  # texts of a prompt
    "loss_type": "dapo",  # this and the next are TRL's defaults
    "scale_rewards": "group",
    "learning_rate": 1e-6,  # at the start, linear to 0
    "adam_eps": 1e-8,
    "kl_coef": 0.05,  # reward units per nat
    "max_grad_norm": 1.0,
    "updates": 1000,
    "seed": 0,
    "threads": 2,
    "device": "cpu",  # or "cuda", in bfloat16
    "on_demand": False,
    "scratch": None,  # folder that TRL may write to
    "save": None,  # folder for the tuned language model
}
"""Every setting with its default."""
Meter = SimpleNamespace
"""Of an update: ``tokens`` of responses up to each text's end, and the ``steps`` of TRL that make it."""


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says; TRL's last logged metrics."""
    torch.set_num_threads(job["threads"])
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # TRL prints to standard output, too
    os.dup2(2, 1)
    trainer, meter = {"ppo": ppo, "grpo": grpo}[job["algorithm"]](job)
    if job["on_demand"]:
        trainer.add_callback(on_demand(meter, answers))
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    if job["save"] is not None:
        getattr(trainer, "policy_model", trainer.model).save_pretrained(job["save"], safe_serialization=True)
    logged = {k: v for entry in trainer.state.log_history for k, v in entry.items() if isinstance(v, int | float)}
    answers.write(json.dumps({"train_s": seconds, **logged}) + "\n")
    return logged


def ppo(job: dict[str, Any]) -> tuple[Any, Meter]:
    """TRL's PPO: policy, value model, reference and reward model are four networks."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    meter = Meter(tokens=0, steps=1)
    cut = ppo_trainer.truncate_response

    def counting(stop_token_id: int, pad_token_id: int, responses: Tensor) -> Tensor:
        kept = cut(stop_token_id, pad_token_id, responses)
        meter.tokens += int((kept != pad_token_id).sum())
        return kept

    ppo_trainer.truncate_response = counting
    data = Dataset.from_dict({"input_ids": json.loads(Path(job["prompts"]).read_text())})
    config = PPOConfig(
        # One micro-batch a minibatch and no accumulation: an optimizer step for every minibatch.
        per_device_train_batch_size=job["rows"], num_mini_batches=job["minibatches"], num_ppo_epochs=job["epochs"],
        local_rollout_forward_batch_size=job["rows"], response_length=job["new_tokens"],
        total_episodes=job["rows"] * job["updates"], num_sample_generations=0, eval_strategy="no", stop_token="eos",
        kl_coef=job["kl_coef"], **_common(job),
    )  # fmt: skip
    lm, reference = (AutoModelForCausalLM.from_pretrained(job["lm"]) for _ in range(2))
    reward, value = (scorer(job["reward_model"]) for _ in range(2))
    trainer = PPOTrainer(
        args=config, processing_class=_tokenizer(job), model=lm, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=data, eval_dataset=data.select(range(8)),
    )  # fmt: skip
    return trainer, meter


def grpo(job: dict[str, Any]) -> tuple[Any, Meter]:
    """TRL's GRPO, which has the KL in the loss."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    meter = Meter(tokens=0, steps=job["minibatches"] * job["epochs"])
    tokenizer, rows = _tokenizer(job), json.loads(Path(job["prompts"]).read_text())
    prompts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    if not job["free_reward"] and tokenizer(prompts)["input_ids"] != rows:
        raise ValueError("TRL takes prompts as text, and these do not become the same tokens again")
    model = None if job["free_reward"] else scorer(job["reward_model"])
    count_positions_from_the_text()

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        meter.tokens += sum(len(ids) for ids in completion_ids)
        if model is None:
            return [float(len(completion) % 7) for completion in completions]
        read = tokenizer(prompts)["input_ids"]
        return scores(model, [prompt + ids for prompt, ids in zip(read, completion_ids, strict=True)])

    config = GRPOConfig(
        per_device_train_batch_size=job["rows"] // job["minibatches"], steps_per_generation=job["minibatches"],
        num_iterations=job["epochs"], num_generations=job["group_size"], max_completion_length=job["new_tokens"],
        max_steps=job["updates"] * meter.steps, top_k=0, beta=job["kl_coef"], loss_type=job["loss_type"],
        scale_rewards=job["scale_rewards"], **_common(job),
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["lm"], dtype=torch.float32), args=config,
        processing_class=tokenizer, reward_funcs=reward, train_dataset=Dataset.from_dict({"prompt": prompts}),
    )  # fmt: skip
    return trainer, meter


def count_positions_from_the_text() -> None:
    """Give GPT-2's trunk the positions that it has in ``generate``, where it is given none but a mask.

    TRL's GRPO pads prompts on the left and trains without positions: those of GPT-2, which are absolute, would be
    others than the texts were written with.
    """
    from transformers import GPT2Model

    trunk: Any = GPT2Model
    plain = trunk.forward

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **given: Any) -> Any:
        mask = given.get("attention_mask")
        if mask is not None and given.get("position_ids") is None and given.get("past_key_values") is None:
            given["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return plain(self, *args, **given)

    trunk.forward = forward


def _common(job: dict[str, Any]) -> dict[str, Any]:
    given = {name: job[name] for name in ("learning_rate", "max_grad_norm", "seed")}
    on_cpu = job["device"] == "cpu"
    return given | {
        "output_dir": job["scratch"], "adam_epsilon": job["adam_eps"], "lr_scheduler_type": "linear", "use_cpu": on_cpu,
        "bf16": not on_cpu, "gradient_checkpointing": False, "gradient_accumulation_steps": 1, "temperature": 1.0,
        "save_strategy": "no", "report_to": "none", "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip


def on_demand(meter: Meter, answers: Any) -> Any:
    """A callback of TRL's trainers that waits for a line before each update, and answers it with its metrics."""
    from transformers import TrainerCallback

    class OnDemand(TrainerCallback):
        steps, began, cpu = 0, 0.0, 0.0

        def wait(self) -> None:
            if not sys.stdin.readline():
                raise SystemExit(0)
            meter.tokens, self.began, self.cpu = 0, time.perf_counter(), time.process_time()

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            answers.write(json.dumps({"ready": True}) + "\n")
            self.wait()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.steps += 1
            if self.steps % meter.steps == 0:
                seconds, cpu_s = time.perf_counter() - self.began, time.process_time() - self.cpu
                metrics = {"seconds": seconds, "cpu_s": cpu_s, "response_tokens": meter.tokens}
                answers.write(json.dumps(metrics) + "\n")
                self.wait()

    return OnDemand()


def _tokenizer(job: dict[str, Any]) -> Any:
    """The language model's own, padding on the left with the job's padding token."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(job["lm"]) / "tokenizer.json"), padding_side="left")
    described = json.loads((Path(job["lm"]) / "tokenizer_config.json").read_text())
    pad = tokenizer.convert_ids_to_tokens(job["pad_token_id"]) if job["pad_token_id"] < len(tokenizer) else "<padding>"
    tokenizer.add_special_tokens({"eos_token": described["eos_token"], "pad_token": pad})
    if tokenizer.pad_token_id != job["pad_token_id"]:
        raise ValueError(f"padding is token {tokenizer.pad_token_id}, the job says {job['pad_token_id']}")
    return tokenizer


class Calibrated(nn.Module):
    """A score head whose output is ``(raw - mean) / std``."""

    def __init__(self, weight: Tensor, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], 1, bias=False)
        self.head.weight = nn.Parameter(weight)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., 1]``."""
        return (self.head(hidden) - self.mean) / self.std


def scorer(folder: str | Path) -> Any:
    """The reward model that ours saved at ``folder``, in the form that TRL takes: GPT-2 with a ``score`` head.

    Ours reads ``bos + text (+ eos)`` at the last real token; prompts here begin with bos already where there is one,
    and TRL keeps a response's eos and reads before the padding, so both read the same rows at the same place.
    """
    from transformers import GPT2ForSequenceClassification

    loaded: Any = GPT2ForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    model, found = loaded
    if any(found.values()):
        raise ValueError(f"{folder}: weights do not fit GPT-2: {found}")
    about = json.loads((Path(folder) / "reward_model.json").read_text())
    mean, std = (torch.tensor(about[name]) for name in ("mean", "std"))
    model.score = Calibrated(model.score.weight.detach(), mean, std)
    return model.eval()


@torch.no_grad()
def scores(model: Any, rows: list[list[int]]) -> list[float]:
    """Of token rows, by a `scorer`, each read at its last token."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    real = torch.arange(padded.shape[1]) < lengths[:, None]
    states = model.transformer(input_ids=padded, attention_mask=real.long()).last_hidden_state
    found: list[float] = model.score(states[torch.arange(len(rows)), lengths - 1])[:, 0].tolist()
    return found


if __name__ == "__main__":
    main(JOB | json.loads(Path(sys.argv[1]).read_text()))
