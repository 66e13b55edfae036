"""Fine-tuning and reward models in several processes, sharded or not: what one process fits, and what it saves.

As a script this file runs every case in several processes, which are forked from one that has imported everything, and
leaves the runs in the folder that it is told.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from agents.cli import run
from agents.recipes.commands.reward_model import TrainRewardModelConfig
from agents.recipes.sft.config import TrainLanguageModelConfig
from agents.recipes.sft.loss import FineTuning
from reward_models import PreferencePair, RewardModel, write_pairs
from reward_models.options import TrainingOptions
from reward_models.training import RewardLearner
from tests.agents.lm.test_sharding import forked

ATOL = 1e-6
"""With STEPS a step is the learning rate, 0.3, times the gradient: see ``tests.agents.runs.test_distributed``."""
STEPS = dict(lr=0.3, eps=1.0)
WORDS = ["<end>", "<unknown>", "good", "bad", "dull", "fine", "film", "plot", "actor", "the", "is", "was"]
SFT = dict(epochs=2, batch_size=7, microbatch_size=3, max_grad_norm=0.5, heldout_share=0.2, num_samples=2)
PAIRS = {
    "group_size": 8, "training.epochs": 2, "training.chunk-size": 3, "training.eval-every": 2,
    "training.max-grad-norm": 0.5,
}  # fmt: skip
CASES = {
    "sft": ("train-language-model", "gpt2", dict(SFT, keep="last", shard="fsdp")),
    "sft, adapter": (
        "train-language-model", "llama", dict(SFT, lora_rank=2, shard="fsdp", gradient_checkpointing=True),
    ),
    "reward": ("train-reward-model", "gpt2", dict(PAIRS, shard="fsdp")),
    "reward, adapter": ("train-reward-model", "llama", dict(PAIRS, lora_rank=2, shard="fsdp")),
}  # fmt: skip
"""What the default tests fit in two processes."""
MORE = {
    "sft, whole in each": ("train-language-model", "llama", dict(SFT, microbatch_size=None)),
    "sft, few rows": ("train-language-model", "llama", dict(SFT, batch_size=2, epochs=0.2, shard="fsdp")),
    "reward, whole in each": ("train-reward-model", "llama", PAIRS),
}
"""What the slow one fits besides, in three."""
KILLED = ("sft", "reward")
"""Of which a process is killed."""
LEARNERS = {"sft": FineTuning, "reward": RewardLearner}
CLOCKS = {"wall_s", "tokens_per_s", "peak_memory_bytes"}
"""What equal runs may differ in."""


def make_inputs(folder):
    """Two language models, rows and pairs."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<end>", "eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unknown>"}
    ids = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    for name, model in (
        ("gpt2", GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=2, **ids))),
        ("llama", LlamaForCausalLM(LlamaConfig(max_position_embeddings=16, **sizes, **ids))),
    ):
        model.save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder / name)
    texts = [f"the {WORDS[6 + i % 3]} {'is' if i % 2 else 'was'}" for i in range(30)]
    rows = [{"prompt": text, "completion": " good" * (1 + i % 4)} for i, text in enumerate(texts)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = [f"{text} {WORDS[2 + i % 4]} {'the ' * (i % 5)}" for i, text in enumerate(texts)]
    write_pairs(
        folder / "pairs.jsonl",
        [PreferencePair(prompt=text, chosen=" good", rejected=" bad") for text in dict.fromkeys(few)],
    )


def arguments(folder, case, name):
    command, model, options = (CASES | MORE)[case]
    data = ["--data", str(folder / "rows.jsonl")] if "sft" in case else ["--pairs", str(folder / "pairs.jsonl")]
    given = {key: value for key, value in options.items() if value is not None}
    flags = [
        f"--{key.replace('_', '-')}" if value is True else f"--{key.replace('_', '-')}={value}"
        for key, value in given.items()
    ]
    paths = ["--run-dir", str(folder / name / case), "--model", str(folder / model)]
    return [command, [*paths, *data, *flags, "--checkpoint-every=2", "--quiet"]]


def train(folder, case, name, *more, stop_at=None, by=signal.SIGINT, rank="0"):
    """Run a case; with ``stop_at`` a signal, Ctrl-C's, reaches one process in that gradient. Returns the exit code."""
    learner = LEARNERS[case[: 3 if "sft" in case else 6]]
    usual, calls = learner.gradient, []

    def gradient(self, batch):
        calls.append(1)
        if len(calls) == stop_at and os.environ.get("RANK", "0") == rank:
            os.kill(os.getpid(), by)
        return usual(self, batch)

    learner.gradient = gradient
    try:
        command, flags = arguments(folder, case, name)
        return run(command, [*flags, *more])
    finally:
        learner.gradient = usual


def prepare():
    """Steps that rounding does not turn, and plots that take no time."""
    torch.optim.AdamW = partial(Steps, torch.optim.AdamW)
    Figure.savefig = lambda figure, out, **options: out.write(b"") if hasattr(out, "write") else Path(out).touch()
    Figure.tight_layout = lambda figure: None


def all_cases(folder, name, cases):
    prepare()
    for case in cases:
        assert train(folder, case, name) == 0
    if name == "two":
        for case in ("sft", "reward, adapter"):
            train(folder, case, "stopped", stop_at=4)
            assert train(folder, case, "stopped", "--resume") == 0
        train(folder, "sft, adapter", "from two", stop_at=4)
        train(folder, "reward", "from two", stop_at=4)


def kill_one(folder, case):
    """Kill the second of two processes in the fifth gradient, and leave how both ended."""

    def killed():
        prepare()
        sys.exit(train(folder, case, "killed", stop_at=5, by=signal.SIGKILL, rank="1"))

    running, said = forked(killed, 2)
    running[1].join()
    began = time.monotonic()
    running[0].join(timeout=100)
    outcome = {"seconds": time.monotonic() - began, "codes": [each.exitcode for each in running]}
    running[0].kill()
    (folder / "killed" / f"{case}.json").write_text(json.dumps(outcome | {"said": said[0].read_text()}))


def Steps(usual, groups, **options):
    """AdamW whose steps rounding does not turn."""
    groups = [{**group, **({"lr": STEPS["lr"]} if "lr" in group else {})} for group in groups]
    return usual(groups, **(options | STEPS))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return launched(tmp_path_factory.mktemp("fits"), 2)


def launched(folder, count):
    make_inputs(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.agents.recipes.test_sharded_fits", str(folder), str(count)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def weights(folder):
    return {
        f"{path.parent.name}/{name}": tensor
        for part in ("model", "adapter")
        for path in sorted((folder / part).rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def summary(folder):
    found = json.loads((folder / "summary.json").read_text())
    return {name: value for name, value in found.items() if name not in CLOCKS and isinstance(value, int | float)}


def assert_same(one, other, atol=ATOL):
    torch.testing.assert_close(weights(one), weights(other), atol=atol, rtol=0)
    assert len(summary(one)) > 8
    assert summary(one) == (pytest.approx(summary(other), rel=1e-4, abs=1e-5) if atol else summary(other))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_fit_what_one_does(runs, case):
    assert_same(runs / "two" / case, runs / "one" / case)
    start = load_file(runs / CASES[case][1] / "model.safetensors")
    if case == "sft":
        moved = load_file(runs / "two" / case / "model" / "model.safetensors")
        assert max((moved[name] - start[name]).abs().max() for name in start) > 1e3 * ATOL


@pytest.mark.parametrize("case", ["sft", "reward, adapter"])
def test_a_stopped_fit_goes_on_bit_for_bit(runs, case):
    assert_same(runs / "stopped" / case, runs / "two" / case, atol=0)
    assert [each.name for each in (runs / "two" / case).glob("*.part")] == []


@pytest.mark.parametrize("case", KILLED)
def test_a_process_that_is_killed_ends_the_other_and_the_fit_goes_on_bit_for_bit(runs, case):
    outcome = json.loads((runs / "killed" / f"{case}.json").read_text())
    assert outcome["codes"][1] == -signal.SIGKILL
    assert outcome["codes"][0] not in (0, None)
    assert outcome["seconds"] < 60
    assert "process 0 stops, as process 1 (pid" in outcome["said"]
    assert_same(runs / "killed" / case, runs / "two" / case, atol=0)


@pytest.mark.parametrize("case", ["sft, adapter", "reward"])
def test_one_process_goes_on_with_what_two_began(runs, case):
    assert_same(runs / "from two" / case, runs / "one" / case)


def test_what_is_saved_is_whole(runs):
    AutoModelForCausalLM.from_pretrained(runs / "two" / "sft" / "model")
    model = RewardModel.load(runs / "two" / "reward, adapter" / "model")
    assert model.score(["the film"], [" is good"]).shape == (1,)


@pytest.mark.slow
def test_three_processes_fit_what_one_does(tmp_path):
    launched(tmp_path, 3)
    for case in CASES | MORE:
        assert_same(tmp_path / "two" / case, tmp_path / "one" / case)


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (TrainRewardModelConfig, dict(members=2), "members: expected 1 where processes share a model, received 2"),
        (
            TrainRewardModelConfig, dict(training=TrainingOptions(dropout=0.1)),
            "training.dropout: expected 0 where processes share a model, received 0.1",
        ),
        (TrainLanguageModelConfig, {}, "shard needs data"),
    ],
)  # fmt: skip
def test_what_processes_cannot_share_is_refused(config, options, said):
    with pytest.raises(ValueError, match=said):
        config(run_dir="x", shard="fsdp", **options)


def main(folder, count):
    def finish(what, number):
        running, said = forked(what, number)
        for each in running:
            each.join()
        if any(each.exitcode for each in running):
            sys.exit("\n".join(file.read_text()[-3000:] for file in said))

    cases = CASES if count == 2 else CASES | MORE

    def several():
        all_cases(folder, "two", cases)
        torch.distributed.destroy_process_group()

    def alone():
        all_cases(folder, "one", cases)
        for case in ("sft, adapter", "reward"):
            assert train(folder, case, "from two", "--resume") == 0

    def resumed():
        prepare()
        for case in KILLED:
            assert train(folder, case, "killed", "--resume") == 0
        torch.distributed.destroy_process_group()

    finish(several, count)
    if count == 2:
        for case in KILLED:
            kill_one(folder, case)
        finish(resumed, 2)
    finish(alone, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
