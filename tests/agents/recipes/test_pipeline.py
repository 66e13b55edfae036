"""Three stages, one after the other, each on what the one before left; a run that was ended goes on."""

import json
import os
import signal
from itertools import product
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from agents.recipes import pipeline
from agents.recipes.pipeline import CHECKPOINT, PipelineConfig, main
from agents.recipes.rlhf.config import TrainTextConfig
from agents.runs.run_dir import SUMMARY, RunDirError
from reward_models.data.movie_ratings import RatedSnippet
from reward_models.training import RewardLearner


@pytest.fixture
def stages(monkeypatch):
    """The scripts of the stages, which only leave their folder; those that ran, with their settings."""
    ran = []

    def fake(name):
        def run(config):
            ran.append((name, config))
            folder = pipeline.Path(config.run_dir)
            folder.mkdir(exist_ok=True)
            if ran[-1][0] == ended.get("at"):
                if ended["checkpoint"]:
                    (folder / CHECKPOINT).touch()
                raise KeyboardInterrupt
            (folder / SUMMARY).write_text(json.dumps({"figure": len(ran)}))
            if name == "train_text":
                (folder / "progress.csv").write_text("time/steps,rollout/score\n64,0.5\n128,0.7\n")
            return {"figure": len(ran)}

        return run

    ended = {}
    reviews = [[f"The {thing} is good.", f"I saw the {thing}, and it IS bad."] for thing in map(str, range(20))]
    monkeypatch.setattr(pipeline, "movie_review_splits", lambda: SimpleNamespace(train=reviews))
    monkeypatch.setattr(pipeline.pretrained, "find_gguf", lambda package: None)
    for name in ("pretrained", "train_language_model", "train_reward_model", "train_text"):
        monkeypatch.setattr(getattr(pipeline, name), "main", fake(name))
    return ran, ended


def test_each_stage_stands_on_the_ones_before(stages, tmp_path):
    ran, _ = stages
    summary = main(PipelineConfig(run_dir=str(tmp_path / "run"), sentences=20))
    assert [name for name, _ in ran] == ["pretrained", "train_language_model", "train_reward_model", "train_text"]
    base = str((tmp_path / "run" / "base" / "model").resolve())
    _, language, reward, text = (config for _, config in ran)
    assert language.model == reward.model == text.model == base
    assert language.lora_rank == reward.lora_rank == 8  # the policy's is that of the adapter it starts from
    assert text.adapter == str(tmp_path / "run" / "fine_tuned" / "adapter")
    assert text.reward == (str(tmp_path / "run" / "reward_model" / "model"),)
    assert text.memory == "adapters"
    assert language.dtype == reward.training.dtype == text.dtype == "bfloat16"
    rows = [json.loads(line) for line in pipeline.Path(language.data).read_text().splitlines()]
    assert len(rows) == 20
    assert all(row["text"] == row["text"].lower() for row in rows)
    assert summary["fine_tuned/figure"] == 2
    assert (tmp_path / "run" / "report.html").exists()


def test_a_model_of_ones_own_is_not_unpacked(stages, tmp_path, model_dir):
    ran, _ = stages
    main(PipelineConfig(run_dir=str(tmp_path / "run"), model=str(model_dir), sentences=5))
    assert "pretrained" not in {name for name, _ in ran}
    assert ran[0][1].model == str(model_dir)


def test_a_model_that_is_not_there_costs_no_finished_run(stages, tmp_path):
    ran, _ = stages
    main(PipelineConfig(run_dir=str(tmp_path / "run"), sentences=5))
    del ran[:]
    with pytest.raises(ValueError, match="nowhere"):
        main(PipelineConfig(run_dir=str(tmp_path / "run"), model=str(tmp_path / "nowhere"), overwrite=True))
    assert not ran
    assert (tmp_path / "run" / "ppo" / SUMMARY).exists()


@pytest.mark.parametrize("checkpoint", [True, False])
def test_what_is_finished_is_kept_and_what_was_begun_goes_on_from_its_checkpoint_or_starts_anew(
    stages, tmp_path, checkpoint
):
    ran, ended = stages
    config = dict(run_dir=str(tmp_path / "run"), sentences=5)
    ended |= {"at": "train_text", "checkpoint": checkpoint}
    with pytest.raises(KeyboardInterrupt):
        main(PipelineConfig(**config))
    ended.clear()
    ran.clear()
    main(PipelineConfig(**config, resume=True))
    assert [(name, config.resume, config.overwrite) for name, config in ran] == [
        ("train_text", checkpoint, not checkpoint)
    ]
    with pytest.raises(RunDirError, match="finished"):
        main(PipelineConfig(**config))
    with pytest.raises(RunDirError, match="finished run: nothing to resume"):
        main(PipelineConfig(**config, resume=True))
    (tmp_path / "run" / SUMMARY).unlink()
    with pytest.raises(RunDirError, match=r"other settings: lora_rank=8 \(now 4\)"):
        main(PipelineConfig(**config, lora_rank=4, resume=True))


def test_the_real_reward_stage_is_no_finished_one_after_ctrl_c_and_is_resumed_bit_for_bit(
    model_dir, tmp_path, monkeypatch
):
    snippets = [
        RatedSnippet(text=f"the {thing} is {word}", ratings=ratings)
        for thing in map(" ".join, product(("the", "a", "very", "and"), ("film", "plot"), ("film", "plot"), "ab"))
        for word, ratings in (("good", (3, 2, 4)), ("bad", (-3, -2, -4)), ("a", (0, 1, -1)))
    ]
    things, said = ("the film", "the plot", "a film", "a plot", "very film"), ("good", "bad", "a", "very")
    reviews = [[f"{thing} is {word}" for thing in things] for word in said]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["the film", "a very", "the plot is", "film", "is the film", "and a"] * 4))
    preset = TrainTextConfig.preset

    def small(**given):
        return preset(**given, rows=str(prompts), max_new_tokens=3, judge=False)

    def plant(patch):
        patch.setattr(pipeline, "movie_review_splits", lambda: SimpleNamespace(train=reviews))
        patch.setattr(pipeline.TrainTextConfig, "preset", small)
        patch.setattr(pipeline.train_reward_model, "load_rated_snippets", lambda: snippets)
        patch.setattr(pipeline.train_reward_model, "judge_sentences", set)
        patch.setattr(pipeline.train_reward_model, "VALIDATION_BATCH", 4)

    sizes = {"sentences": 8, "reward_epochs": 4.0, "episodes": 16, "batch_size": 8, "num_eval_rows": 4}
    config = {"model": str(model_dir), "dtype": "float32", "lora_rank": 2, **sizes}
    plant(monkeypatch)
    main(PipelineConfig(run_dir=str(tmp_path / "whole"), **config))
    gradient, calls = RewardLearner.gradient, []

    def interrupt(self, batch):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return gradient(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(RewardLearner, "gradient", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main(PipelineConfig(run_dir=str(tmp_path / "run"), **config))
    stage = tmp_path / "run" / "reward_model"
    assert (stage / CHECKPOINT).exists()
    assert not (stage / SUMMARY).exists()
    main(PipelineConfig(run_dir=str(tmp_path / "run"), **config, resume=True))
    for name in ("reward_model/model", "ppo/model"):
        one, other = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "run"))
        assert one.keys() == other.keys()
        assert all((one[key] == other[key]).all() for key in one)


def test_numbers_below_one_are_named():
    with pytest.raises(ValueError, match="sentences"):
        PipelineConfig(run_dir="none", sentences=0)
