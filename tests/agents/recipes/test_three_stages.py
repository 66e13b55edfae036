"""RLHF's three stages on chats, each by its script, each from what the one before it left."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import cli
from agents.recipes.rlhf.config import command_line as train_text
from agents.recipes.sft.config import command_line as train_language_model

THINGS = {"sky": "blue", "grass": "green"}


def turn(role, content):
    return {"role": role, "content": content}


@pytest.fixture
def data(tmp_path):
    """Folder with chats, preferences and prompts; people prefer the true color."""
    chats, pairs = [], []
    for index in range(48):
        thing, color = list(THINGS.items())[index % 2]
        asked = [turn("system", "and " * (index // 4)), turn("user", f"what is {thing}")]
        chats.append({"messages": [*asked, turn("assistant", color if index % 3 else "red")]})
        pairs.append({"prompt": asked, "chosen": color, "rejected": "red"})
    for name, rows in (("chats", chats), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.parametrize("memory", [pytest.param("shared", marks=pytest.mark.slow), "adapters"])
def test_three_stages_hand_over_to_one_another(chat_model_dir, data, memory, capsys):
    runs = {name: data / memory / name for name in ("sft", "reward", "ppo")}
    lora = ["--lora-rank", "4"] if memory == "adapters" else []
    base = chat_model_dir if lora else runs["sft"] / "model"
    flags = ["--model", str(chat_model_dir), "--data", str(data / "chats.jsonl"), "--max-length", "32"]
    sizes = ["--too-long", "skip", "--epochs", "2", "--batch-size", "8", "--num-samples", "2", "--sample-tokens", "3"]
    assert train_language_model(["--run-dir", str(runs["sft"]), *flags, *sizes, *lora]) == 0
    assert "  after: " in capsys.readouterr().out
    flags = ["--model", str(base), "--pairs", str(data / "pairs.jsonl"), "--group-size", "8"]
    assert cli.run("train-reward-model", ["--run-dir", str(runs["reward"]), *flags, *lora]) == 0
    given = {
        "--run-dir": runs["ppo"], "--model": base, "--reward": runs["reward"] / "model",
        "--rows": data / "chats.jsonl", "--episodes": 16, "--batch-size": 8, "--minibatch-size": 4, "--epochs": 1,
        "--max-new-tokens": 2, "--num-eval-rows": 2, "--memory": memory,
    }  # fmt: skip
    adapter = ["--adapter", str(runs["sft"] / "adapter")] if lora else []
    flags = [str(part) for pair in given.items() for part in pair]
    assert train_text([*flags, "--no-judge", *adapter]) == 0
    samples = json.loads((runs["ppo"] / "samples.json").read_text())["samples"]
    assert all("what is" in sample["prompt"] and "<user>" not in sample["prompt"] for sample in samples)
    started = AutoModelForCausalLM.from_pretrained(runs["sft"] / "model").state_dict()
    ended = AutoModelForCausalLM.from_pretrained(runs["ppo"] / "model").state_dict()
    assert started.keys() == ended.keys()
    assert any(not torch.equal(tensor, ended[name]) for name, tensor in started.items())
