"""The run of ``textenvs pipeline``; its settings are in `agents.recipes.commands.pipeline`."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.lm.loading import check_model
from agents.recipes import gguf as pretrained
from agents.recipes import reward_model as train_reward_model
from agents.recipes.commands.pipeline import PipelineConfig
from agents.recipes.commands.reward_model import TrainRewardModelConfig
from agents.recipes.rlhf import train as train_text
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.sft import train as train_language_model
from agents.recipes.sft.config import TrainLanguageModelConfig
from agents.reports.page import write_report
from agents.runs.devices import check_device
from agents.runs.lifecycle import CHECKPOINT
from agents.runs.run_dir import SUMMARY, RunDir, read_json
from reward_models.aside import write_aside
from reward_models.data.movie_reviews import movie_review_splits
from reward_models.options import TrainingOptions

BASE, SENTENCES, FINE_TUNED, REWARD, PPO = "base", "sentences.jsonl", "fine_tuned", "reward_model", "ppo"
MODEL = "model"


def main(config: PipelineConfig) -> dict[str, Any]:
    """Run what is missing; returns what ``summary.json`` holds.

    Raises:
        RunDirError, ValueError, OSError: as the stages raise them.
        Interrupted: after Ctrl-C or SIGTERM, once the stage at work has written its checkpoint.
    """
    began = time.perf_counter()
    check_device(config.device)
    overwrite, resume, reads = config.overwrite, config.resume, (config.model,)
    with RunDir(config.run_dir, script="pipeline", overwrite=overwrite, resume=resume, reads=reads) as run:
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("run_dir", "resume", "overwrite")}
        if config.resume:
            run.check_resumable(settings)
        _check_base(config)
        run.begin(settings)
        summary: dict[str, Any] = {}
        for name, stage in (("base", base), (FINE_TUNED, fine_tune), (REWARD, fit_reward), (PPO, tune)):
            summary |= {f"{name}/{key}": value for key, value in _once(run.path / name, stage, config).items()}
        summary["wall_s"] = time.perf_counter() - began
        run.write_json(SUMMARY, summary)
        print(f"report: {write_report(run.path)}   tuned model: {run.path / PPO / MODEL}")
        return summary


Stage = Callable[[PipelineConfig, Path], dict[str, Any]]


def _once(folder: Path, stage: Stage, config: PipelineConfig) -> dict[str, Any]:
    """The stage's summary: read if the stage has finished, which its summary.json marks, else run now."""
    if (folder / SUMMARY).exists():
        return read_json(folder / SUMMARY)
    print(f"-- {folder.name} --", flush=True)
    return stage(config, folder)


def base_path(config: PipelineConfig) -> str:
    """The model all stages stand on."""
    return config.model or str(Path(config.run_dir).resolve() / BASE / MODEL)


def _check_base(config: PipelineConfig) -> None:
    """Whether there is such a model, asked before an old run is thrown away for the new one."""
    if config.model is not None:
        check_model(config.model)
    elif not config.resume:
        pretrained.find_gguf(pretrained.PretrainedConfig.package)


def base(config: PipelineConfig, folder: Path) -> dict[str, Any]:
    """The pretrained model as a folder that transformers loads."""
    if config.model is not None:
        return {"model": config.model}
    return pretrained.main(pretrained.PretrainedConfig(run_dir=str(folder), overwrite=True))


def fine_tune(config: PipelineConfig, folder: Path) -> dict[str, Any]:
    """Stage 1: the model learns to write as reviews are written."""
    sentences = [sentence for review in movie_review_splits().train for sentence in review]
    chosen = random.Random(config.seed).sample(sentences, min(config.sentences, len(sentences)))
    data = folder.parent / SENTENCES
    write_aside(data, "".join(json.dumps({"text": sentence.lower()}) + "\n" for sentence in chosen))
    return train_language_model.main(
        TrainLanguageModelConfig(
            **_shared(config, folder),
            data=str(data),
            lora_rank=config.lora_rank,
            dtype=config.dtype,
            epochs=1.0,
        )
    )


def fit_reward(config: PipelineConfig, folder: Path) -> dict[str, Any]:
    """Stage 2: Bradley–Terry on comparisons of human ratings; trunk and tokenizer are the policy's own."""
    return train_reward_model.main(
        TrainRewardModelConfig(
            **_shared(config, folder),
            lora_rank=config.lora_rank,
            words=False,
            training=TrainingOptions(
                epochs=config.reward_epochs, learning_rate=5e-4, eval_every=20, dtype=config.dtype
            ),
        )
    )


def tune(config: PipelineConfig, folder: Path) -> dict[str, Any]:
    """Stage 3: PPO from the fine-tuned adapter, which is the reference, too."""
    stages = folder.parent
    return train_text.main(
        TrainTextConfig.preset(
            **_shared(config, folder),
            adapter=str(stages / FINE_TUNED / train_text.ADAPTER),
            reward=(str(stages / REWARD / MODEL),),
            memory="adapters",
            dtype=config.dtype,
            episodes=config.episodes,
            batch_size=config.batch_size,
            minibatch_size=max(1, config.batch_size // 2),
            epochs=1,
            num_eval_rows=config.num_eval_rows,
            checkpoint_every=5,
        )
    )


def _shared(config: PipelineConfig, folder: Path) -> dict[str, Any]:
    """Settings of every stage; one that left a checkpoint is resumed, otherwise it starts anew."""
    begun = (folder / CHECKPOINT).exists()
    run = {"run_dir": str(folder), "resume": begun, "overwrite": not begun}
    return {**run, "model": base_path(config), "seed": config.seed, "device": config.device}
