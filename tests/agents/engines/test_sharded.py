"""Processes that share a model hand its weights to one engine: what one process learns by it.

As a script this file runs ``train-text`` with its arguments in two processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents.recipes.rlhf.config import TrainTextConfig, command_line
from agents.runs.run_dir import read_json
from tests.agents.engines.test_train_text import words
from tests.agents.lm.test_sharding import forked
from textenvs import assets
from textenvs.lm.loading import load_causal_lm

STEPS = ["--learning-rate", "0.03", "--adam-eps", "1"]
"""See ``tests.agents.runs.test_distributed``."""


ADAPTERS = ["--memory", "adapters", "--engine-weights", "adapter", "--async-rollouts", "1"]
BROADCAST = ["--engine-transfer", "broadcast"]


@pytest.mark.parametrize("more", [[], *(pytest.param(each, marks=pytest.mark.slow) for each in (ADAPTERS, BROADCAST))])
def test_two_processes_that_share_a_model_learn_by_an_engine(serve, tmp_path, more):
    def outcome(name, run):
        fake = serve(load_causal_lm(assets.language_model_dir()))
        run([*words(tmp_path / name, fake, *STEPS, *more)])
        figures = ("kl_per_sequence", "score_before", "score_after")
        about = read_json(tmp_path / name / "summary.json", *figures)
        return load_file(tmp_path / name / "model" / "model.safetensors"), [about[figure] for figure in figures]

    def together(arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.agents.engines.test_sharded", *arguments, "--shard", "fsdp"]
        root = Path(__file__).parents[3]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    alone, expected = outcome("one", lambda arguments: command_line(arguments))
    shared, found = outcome("two", together)
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=0)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(async_rollouts=1), "async_rollouts: expected 0 with shard fsdp and no engine"),
        (dict(engine="http://x", memory="adapters"), 'engine_weights: expected "adapter" with shard fsdp'),
    ],
)
def test_what_sharded_weights_cannot_do_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        TrainTextConfig.preset("rloo", run_dir="x", shard="fsdp", **settings)


if __name__ == "__main__":
    running, said = forked(lambda: sys.exit(command_line(sys.argv[1:])), 2)
    for each in running:
        each.join()
    sys.exit("\n".join(file.read_text()[-3000:] for file in said) if any(each.exitcode for each in running) else 0)
