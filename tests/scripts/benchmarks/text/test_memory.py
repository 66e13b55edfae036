"""What the benchmark subtracts and divides; the runs themselves are put in here, a real one is slow."""

import json
import subprocess

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.benchmarks.text import memory as benchmark_memory
from scripts.benchmarks.text.memory import BenchmarkMemoryConfig, main, trunk_bytes


@pytest.fixture
def model_dir(tmp_path):
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, **ids)).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def test_the_trunk_alone_is_subtracted_and_a_tied_head_counts_once(tmp_path, model_dir, monkeypatch):
    model = GPT2LMHeadModel.from_pretrained(model_dir)
    weights = trunk_bytes(model_dir)
    assert weights == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    peaks = {"full": weights + 800, "adapters": weights + 100}

    def measured(config, memory, *paths):
        return {"peak_memory_bytes": peaks[memory], "wall_s": 6.0}

    monkeypatch.setattr(benchmark_memory, "measure", measured)
    summary = main(BenchmarkMemoryConfig(run_dir=str(tmp_path / "run"), model=str(model_dir), updates=3))
    assert summary["full_beyond_trunk_bytes"] == 800
    assert summary["adapters_over_full"] == 1 / 8
    assert summary["full_seconds_per_update"] == 2.0
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_a_run_that_fails_is_told_with_its_last_words(tmp_path, model_dir, monkeypatch):
    def fails(command, **options):
        assert command[1:3] == ["-m", "scripts.train_text"]
        return subprocess.CompletedProcess(command, 2, stdout="", stderr="error: no memory left")

    monkeypatch.setattr(subprocess, "run", fails)
    config = BenchmarkMemoryConfig(run_dir=str(tmp_path / "run"), model=str(model_dir), memory=("shared",))
    with pytest.raises(RuntimeError, match="shared ended with 2: error: no memory left"):
        main(config)


@pytest.mark.slow
def test_adapters_take_less_than_a_quarter_of_full(tmp_path):
    torch.set_num_threads(1)
    assert main(BenchmarkMemoryConfig(run_dir=str(tmp_path / "run"), updates=1))["adapters_over_full"] < 0.25
