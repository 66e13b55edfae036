"""The script from a user's chair: what a run leaves behind, bad input, Ctrl-C, resume. Tiny models, no network."""

import csv
import json
import math
import os
import random
import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.lm.causal_lm import CausalLMPolicy
from agents.recipes.sft import train as lm
from agents.recipes.sft.config import TrainLanguageModelConfig, command_line
from agents.recipes.sft.data import read_examples
from agents.recipes.sft.from_scratch import (
    FromScratch,
    batches,
    encode_reviews,
    new_model,
    next_token_loss,
    train_tokenizer,
)
from agents.recipes.sft.loss import BatchLimits, FineTuning, mean_loss
from agents.recipes.sft.rows import RowEncoder
from agents.runs.checkpoint import load
from agents.runs.lifecycle import CHECKPOINT
from agents.runs.run_dir import RunDirError
from agents.runs.signals import Interrupted
from reward_models.data.movie_reviews import MovieReviewSplits

SENTENCES = ["The film was good.", "The plot was thin.", "A fine cast!", "I liked the end.", "Nobody else did."]
CLOCKS = {"wall_s", "tokens_per_s", "train/tokens_per_s", "peak_memory_bytes"}
"""What two equal runs may differ in."""


@pytest.fixture
def toy_splits(monkeypatch):
    splits = MovieReviewSplits(
        train=[SENTENCES] * 60, validation=SENTENCES[:2], prompt_train=SENTENCES, prompt_test=SENTENCES
    )
    monkeypatch.setattr(lm, "movie_review_splits", lambda: splits)


def scratch(folder, **options):
    return TrainLanguageModelConfig(
        run_dir=str(folder), vocab_size=280, num_layers=1, width=16, num_heads=2, batch_tokens=256, **options
    )


@pytest.fixture
def chats(tmp_path):
    """Forty chats: colors of things, and a sum after them."""
    rows = []
    for index in range(40):
        thing, color = [("sky", "blue"), ("grass", "green")][index % 2]
        turns = [("system", "and " * (index // 2 % 5)), ("user", f"what is {thing}"), ("assistant", color)]
        turns += [("user", "two plus two"), ("assistant", "four")] if index % 3 == 0 else []
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def fine(model, data, folder, **options):
    options = dict(epochs=4.0, learning_rate=1e-2, heldout_share=0.1, batch_size=8, num_samples=2) | options
    return TrainLanguageModelConfig(run_dir=str(folder), model=str(model), data=str(data), sample_tokens=4, **options)


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items()) and one.keys() == other.keys()


def summary_of(run):
    summary = json.loads((run / "summary.json").read_text())
    return {name: value for name, value in summary.items() if name not in CLOCKS}


def progress_of(run):
    with open(run / "progress.csv") as file:
        return [{name: value for name, value in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


def interrupt_at(monkeypatch, learner, call):
    """Ctrl-C during the ``call``-th gradient of a run."""
    usual, calls = learner.gradient, []

    def gradient(self, batch):
        calls.append(batch)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(self, batch)

    monkeypatch.setattr(learner, "gradient", gradient)


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.slow), {"lora_rank": 4, "dtype": "bfloat16"}],
    ids=["all weights", "adapter"],
)
def test_a_chat_model_learns_to_answer_and_what_is_saved_is_as_good_as_the_summary_says(
    chat_model_dir, chats, tmp_path, options
):
    run = tmp_path / "run"
    summary = lm.main(fine(chat_model_dir, chats, run, gradient_checkpointing=True, microbatch_size=3, **options))
    assert summary["perplexity_after"] < 0.5 * summary["perplexity_before"]
    assert summary["kind"] == "chats"
    assert (summary["rows"], summary["heldout_rows"]) == (36, 4)
    policy = CausalLMPolicy(AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32), critic="none")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    rows = RowEncoder(tokenizer, eos_token_id=0)(read_examples(chats))
    assert math.exp(mean_loss(policy, rows, BatchLimits(rows=8))) < 0.5 * summary["perplexity_before"]
    for sample in json.loads((run / "samples.json").read_text())["samples"]:
        assert sample.keys() == {"prompt", "target", "before", "after"}
        assert "<user>" not in sample["prompt"]
    if options:
        base = AutoModelForCausalLM.from_pretrained(chat_model_dir, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, str(run / "adapter")).merge_and_unload()
        for name, tensor in policy.model.state_dict().items():
            # The saved one was merged into weights that are rounded to bfloat16.
            torch.testing.assert_close(adapted.state_dict()[name], tensor, rtol=1e-2, atol=1e-2, msg=name)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}], ids=["all weights", "adapter"])
def test_a_stopped_run_resumes_bit_for_bit(llama_dir, chats, tmp_path, monkeypatch, options):
    options |= {"checkpoint_every": 4, "eval_every": 3, "epochs": 2.0}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    lm.main(fine(llama_dir, chats, whole, **options))
    with monkeypatch.context() as context:
        interrupt_at(context, FineTuning, 7)
        with pytest.raises(Interrupted):
            lm.main(fine(llama_dir, chats, stopped, **options))
    assert (stopped / "model" / "model.safetensors").exists()
    assert not (stopped / "summary.json").exists()
    lm.main(fine(llama_dir, chats, stopped, resume=True, **options))
    assert equal(weights(whole), weights(stopped))
    assert summary_of(whole) == summary_of(stopped)
    assert progress_of(whole) == progress_of(stopped)
    assert (whole / "samples.json").read_text() == (stopped / "samples.json").read_text()
    with pytest.raises(RunDirError, match="finished run"):
        lm.main(fine(llama_dir, chats, stopped, resume=True, **options))


def test_a_run_that_crashed_resumes_from_its_checkpoint_unless_data_or_settings_changed(
    llama_dir, chats, tmp_path, monkeypatch
):
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    lm.main(fine(llama_dir, chats, whole, epochs=2.0, checkpoint_every=4))

    def fails(self, batch, usual=FineTuning.gradient, calls=[]):  # noqa: B006
        calls.append(batch)
        if len(calls) == 7:
            raise RuntimeError("out of memory")
        return usual(self, batch)

    with monkeypatch.context() as context:
        context.setattr(FineTuning, "gradient", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            lm.main(fine(llama_dir, chats, crashed, epochs=2.0, checkpoint_every=4))
    with pytest.raises(RunDirError, match=r"other settings: learning_rate=0\.01 \(now 0\.5\)"):
        lm.main(fine(llama_dir, chats, crashed, epochs=2.0, checkpoint_every=4, resume=True, learning_rate=0.5))
    text = chats.read_text()
    chats.write_text(text.replace("blue", "red"))
    with pytest.raises(RuntimeError, match="the files have changed"):
        lm.main(fine(llama_dir, chats, crashed, epochs=2.0, checkpoint_every=4, resume=True))
    chats.write_text(text)
    lm.main(fine(llama_dir, chats, crashed, epochs=2.0, checkpoint_every=4, resume=True))
    assert equal(weights(whole), weights(crashed))


def test_prompts_wrapped_into_turns_learn_what_the_chats_say(llama_dir, tmp_path):
    pairs, chats = [], []
    for index in range(12):
        prompt, completion = f"what is {'two ' * index}", "sky"
        pairs.append({"prompt": prompt, "completion": completion})
        turns = [("user", prompt), ("assistant", completion)]
        chats.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    for name, rows in (("pairs", pairs), ("chats", chats)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lm.main(fine(llama_dir, tmp_path / "pairs.jsonl", tmp_path / "a", epochs=1.0, chat_template=True))
    lm.main(fine(llama_dir, tmp_path / "chats.jsonl", tmp_path / "b", epochs=1.0))
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_new_model_learns_data_of_your_own_by_tokens_and_without_held_out_rows(tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in SENTENCES * 5))
    summary = lm.main(scratch(tmp_path / "run", data=str(data), train_tokens=3000, heldout_share=0.0, keep="last"))
    assert 3000 - 256 < summary["tokens"] < 3000 + 256
    assert summary["perplexity_before"] is None
    assert json.loads((tmp_path / "run" / "samples.json").read_text()) == {"samples": []}
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").vocab_size == 280


@pytest.mark.parametrize(
    ("line", "flags", "complaint"),
    [
        ("{oops", (), "my.jsonl:2: expected JSON"),
        ('{"prompt": "sky", "completion": ""}', (), "my.jsonl:2: expected a row to learn from: 'completion' is empty"),
        (
            '{"prompt": "sky"}',
            (),
            "my.jsonl:2: expected a row to learn from: expected prompt and completion; received prompt",
        ),
        (json.dumps({"prompt": "sky " * 40, "completion": "blue"}), (), "my.jsonl:2: a row of 43 tokens is longer"),
        (json.dumps({"prompt": "sky " * 40, "completion": "blue"}), ("--too-long", "cut"), "my.jsonl:2: the first 32"),
        ("", ("--heldout-share", "0.5"), "--heldout-share 0"),
        ("", ("--max-length", "99"), "more than the model's 32 positions"),
        ("", ("--heldout-data", "none.jsonl"), "no file 'none.jsonl'"),
        ("", ("--model", "no/such/model"), "no/such/model"),
    ],
)
def test_bad_input_is_named_and_leaves_exit_code_two(llama_dir, tmp_path, capsys, line, flags, complaint):
    data = tmp_path / "my.jsonl"
    data.write_text('{"prompt": "what is", "completion": "sky"}\n' + line)
    given = ["--run-dir", str(tmp_path / "run"), "--data", str(data), "--model", str(llama_dir), *flags]
    assert command_line(given) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_bad_input_costs_no_finished_run(llama_dir, chats, tmp_path):
    run = tmp_path / "run"
    lm.main(fine(llama_dir, chats, run, epochs=1.0))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for wrong in ({"model": tmp_path / "typo"}, {"data": tmp_path / "typo"}, {"model": run / "model"}):
        given = {"model": llama_dir, "data": chats, "folder": run} | wrong
        with pytest.raises((ValueError, OSError, RunDirError)):
            lm.main(fine(**given, overwrite=True))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"model": "m"}, "model needs data"),
        ({"lora_rank": 4, "data": "d"}, "lora_rank needs model"),
        ({"lora_alpha": 8.0, "model": "m", "data": "d"}, "lora_alpha needs lora_rank"),
        ({"epochs": 2.0}, "epochs needs data"),
        ({"width": 8, "model": "m", "data": "d"}, "width is of a new model"),
        ({"epochs": 2.0, "train_tokens": 9, "data": "d"}, "epochs and train_tokens say the same thing"),
        ({"batch_size": 0, "data": "d"}, "batch_size: expected a number >= 1, received 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number > 0, received 0.0"),
        ({"heldout_share": 1.5, "data": "d"}, r"heldout_share: expected a number in \[0, 1\), received 1.5"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        TrainLanguageModelConfig(run_dir="run", **options)


def test_movie_reviews_are_learned_as_by_the_loop_written_out(tmp_path, toy_splits, pictures):
    config = scratch(tmp_path / "run", train_tokens=4096, eval_every=5).settled()
    lm.main(config)
    torch.manual_seed(0)
    tokenizer = train_tokenizer([s for _ in range(60) for s in SENTENCES], 280, 128)
    model = new_model(config, tokenizer)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2.5e-3, betas=(0.9, 0.95), fused=True)
    data = batches(encode_reviews(tokenizer, [SENTENCES] * 60), tokenizer.bos_token_id, 256, random.Random(0))
    for step in range(16):
        for group in optimizer.param_groups:
            group["lr"] = 2.5e-3 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / 16)))
        tokens, mask = next(data)
        (next_token_loss(model, tokens, mask) / mask[:, 1:].sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    learned = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert equal(learned.state_dict(), model.state_dict())


def test_movie_reviews_stopped_by_ctrl_c_keep_what_was_trained_and_resume_bit_for_bit(
    tmp_path, toy_splits, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    lm.main(scratch(whole, train_tokens=4096, eval_every=5))
    with monkeypatch.context() as context:
        interrupt_at(context, FromScratch, 7)
        with pytest.raises(Interrupted):
            lm.main(scratch(stopped, train_tokens=4096, eval_every=5))
    assert load(stopped / CHECKPOINT)["progress"]["step"] == 7
    assert AutoModelForCausalLM.from_pretrained(stopped / "model").config.vocab_size == 280
    assert not (stopped / "summary.json").exists()
    lm.main(scratch(stopped, train_tokens=4096, eval_every=5, resume=True))
    assert equal(weights(whole), weights(stopped))
    assert summary_of(whole) == summary_of(stopped)
    assert progress_of(whole) == progress_of(stopped)
