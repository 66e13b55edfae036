"""Three stages, one after the other, each on what the one before left; a run that was ended goes on."""

import json
from types import SimpleNamespace

import pytest

from agents.recipes import pipeline
from agents.recipes.pipeline import CHECKPOINT, PipelineConfig, main
from agents.runs.run_dir import CONFIG, SUMMARY, RunDirError


@pytest.fixture
def stages(monkeypatch):
    """The scripts of the stages, which only leave their folder; those that ran, with their settings."""
    ran = []

    def fake(name):
        def run(config):
            ran.append((name, config))
            folder = pipeline.Path(config.run_dir)
            folder.mkdir(exist_ok=True)
            (folder / CONFIG).write_text("{}")
            if ran[-1][0] == ended.get("at"):
                if ended["checkpoint"]:
                    (folder / CHECKPOINT).touch()
                return {"interrupted": True}
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
    assert text.reward_model == (str(tmp_path / "run" / "reward_model" / "model"),)
    assert text.memory == "adapters"
    assert language.dtype == reward.training.dtype == text.dtype == "bfloat16"
    rows = [json.loads(line) for line in pipeline.Path(language.data).read_text().splitlines()]
    assert len(rows) == 20
    assert all(row["text"] == row["text"].lower() for row in rows)
    assert summary["fine_tuned/figure"] == 2
    assert (tmp_path / "run" / "ppo.png").exists()


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
    with pytest.raises(RunDirError, match="lora_rank 8, received 4"):
        main(PipelineConfig(**config, lora_rank=4, resume=True))


def test_numbers_below_one_are_named():
    with pytest.raises(ValueError, match="sentences"):
        PipelineConfig(run_dir="none", sentences=0)
