"""The script from a user's chair: what a run leaves behind, bad input, Ctrl-C, resume. A tiny model, no network."""

import csv
import json
import os
import re
import shutil
import signal
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import cli
from agents.evaluation.curve import read_points, updates_between_points
from agents.evaluation.metrics import Assessment, compare, distinct_bigrams_of_all, perplexity_under, win_rate
from agents.evaluation.samples import Samples
from agents.recipes import evaluate as evaluate_agent
from agents.recipes.rlhf.build import build_parts
from agents.recipes.rlhf.config import TrainTextConfig, command_line
from agents.recipes.rlhf.memory_plan import planned_bytes
from agents.reports.run_files import read_columns
from agents.runs import run_dir as run_dir_module
from agents.runs.logging import METRICS
from agents.text.agent import METRICS as TEXT_AGENT_METRICS
from agents.text.config import PAPERS, TextAgentConfig
from agents.text.rollout_metrics import METRICS as TEXT_METRICS
from textenvs.wrappers.preference import ScoredRows

KEYS = {
    "algorithm", "seed", "episodes", "wall_s", "score_before", "score_after", "judge_before", "judge_after",
    "judge_win_rate", "kl_per_sequence", "perplexity_before", "perplexity_after", "distinct2_before",
    "distinct2_after", "mean_length_before", "mean_length_after", "response_tokens_per_s",
}  # fmt: skip


@pytest.fixture
def inputs(tmp_path, model_dir, monkeypatch):
    """Command-line arguments of a small run, without the run directory; the reward counts "good"."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["the film", "a very", "the plot is", "film", "is the film", "and a"] * 4))
    (tmp_path / "own_reward.py").write_text(
        "import os, signal\n"
        "calls = 0\n"
        "def good(prompts, completions):\n"
        "    return [float(text.split().count('good')) for text in completions]\n"
        "seen = []\n"
        "def remember(prompts, completions):\n"
        "    seen.extend(prompts)\n"
        "    return good(prompts, completions)\n"
        "def nan(prompts, completions):\n"
        "    return [float('nan')] * len(prompts)\n"
        "def interrupt_at_second_update(prompts, completions):\n"
        "    global calls\n"
        "    calls += len(prompts) == 8\n"  # a batch; evaluations have two prompts
        "    if calls == 2 and len(prompts) == 8:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return good(prompts, completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import importlib
    import sys

    sys.modules.pop("own_reward", None)
    importlib.invalidate_caches()
    yield {
        "--model": str(model_dir), "--reward": "own_reward:good", "--rows": str(prompts),
        "--episodes": "32", "--batch-size": "8", "--minibatch-size": "4", "--epochs": "2", "--learning-rate": "0.01",
        "--max-new-tokens": "6", "--num-eval-rows": "8", "--checkpoint-every": "1",
    }  # fmt: skip
    sys.modules.pop("own_reward", None)


def run(inputs, run_dir, *flags, **changed):
    arguments = dict(inputs) | {f"--{name.replace('_', '-')}": str(value) for name, value in changed.items()}
    flat = [part for pair in arguments.items() for part in pair]
    return command_line([*flat, "--run-dir", str(run_dir), "--no-judge", *flags])


def weights(run_dir):
    return load_file(run_dir / "model" / "model.safetensors")


def assert_same_weights(one, other):
    first, second = weights(one), weights(other)
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_everything_it_promises(inputs, tmp_path, pictures):
    assert run(inputs, tmp_path / "run") == 0
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) >= KEYS
    assert summary["episodes"] == 32
    assert summary["response_tokens_per_s"] > 0
    assert summary["kl_per_sequence"] != 0
    assert AutoTokenizer.from_pretrained(folder / "model").eos_token == "<end>"
    start = AutoModelForCausalLM.from_pretrained(inputs["--model"]).state_dict()
    tuned = weights(folder)
    assert any(not torch.equal(start[name], tensor) for name, tensor in tuned.items())
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    assert {"prompt", "before", "after", "score_before", "score_after"} <= set(samples[0])
    with open(folder / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    updates = [row for row in rows if row["train/updates"]]
    assert len(updates) == 4
    assert {"rollout/score", "rollout/kl_per_sequence", "train/clip_fraction"} <= set(rows[0])
    assert {*METRICS, *TEXT_METRICS, *TEXT_AGENT_METRICS} >= {
        name for name in rows[0] if not name.startswith(("eval/", "monitor/"))
    }
    assert list(folder.glob("events.out.tfevents.*"))
    assert not list(folder.glob("*.part"))
    assert not (folder / "in_use.pid").exists()


def test_evaluating_what_a_run_left_behind_repeats_its_figures_and_only_such_runs_are_taken(inputs, tmp_path, capsys):
    assert run(inputs, tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    again = evaluate_agent.main(
        evaluate_agent.EvaluateAgentConfig(agent=tmp_path / "run", episodes=8, run_dir=tmp_path / "evaluation")
    )
    for name in ("score_before", "score_after", "kl_per_sequence", "distinct2_after"):
        assert again[name] == pytest.approx(summary[name])
    assert json.loads((tmp_path / "evaluation" / "summary.json").read_text()) == again

    def complains(message, *flags):
        assert cli.run("evaluate", [*flags, "--overwrite"]) == 2
        assert message in capsys.readouterr().err

    agent = ["--agent", str(tmp_path / "run")]
    complains("run of train-text: --env, --stochastic, --seed", *agent, "--env", "X", "--stochastic", "--seed", "1")
    complains("run of train_text, not of evaluate_agent", *agent, "--run-dir", str(tmp_path / "run"))
    complains("pass the run directory", "--agent", str(tmp_path / "run" / "model"))
    for script in ("train_reward_model", "train_language_model"):
        (tmp_path / "run" / "made_by.txt").write_text(script)
        complains(f"train-control or train-text, received one of {script.replace('_', '-')}", *agent)
    (tmp_path / "run" / "made_by.txt").unlink()
    complains("pass the run directory", *agent)
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_frontier_is_measured_along_the_run_and_said_the_same_everywhere(inputs, tmp_path):
    assert run(inputs, tmp_path / "run", evaluate_every=2) == 0
    points = read_points(tmp_path / "run" / "frontier.csv")
    assert [point["episodes"] for point in points] == [0, 16, 32]
    assert points[0]["kl_per_sequence"] == pytest.approx(0.0, abs=1e-5)
    assert points[-1]["kl_per_sequence"] > 0.01
    assert all(point["judge"] is point["judge_win_rate"] is None for point in points)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert points[-1]["kl_per_sequence"] == summary["kl_per_sequence"]
    for point, side in ((points[0], "before"), (points[-1], "after")):
        for name in ("score", "mean_length", "distinct2", "perplexity"):
            assert point[name] == summary[f"{name}_{side}"]
    columns = read_columns(tmp_path / "run" / "progress.csv")
    logged = [value for value in columns["eval/score"] if value == value]
    assert logged == pytest.approx([point["score"] for point in points])
    assert {f"eval/{name}" for name in points[0] if not name.startswith(("episodes", "judge"))} <= set(columns)


def test_evaluating_along_the_run_changes_nothing(inputs, tmp_path):
    for every in (0, 1):
        assert run(inputs, tmp_path / str(every), evaluate_every=every) == 0
    assert_same_weights(tmp_path / "0", tmp_path / "1")
    ends, all_of_them = (read_points(tmp_path / str(every) / "frontier.csv") for every in (0, 1))
    assert ends == [all_of_them[0], all_of_them[-1]]
    assert len(all_of_them) == 5


def test_how_often_points_are_taken():
    assert updates_between_points(None, 8192, 256) == 4  # 32 updates, eight points
    assert updates_between_points(None, 100, 256) == 1
    assert updates_between_points(5, 8192, 256) == 5
    assert updates_between_points(0, 8192, 256) is None


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_page_of_tokens_adds_up_to_the_score(inputs, tmp_path, algorithm):
    if algorithm == "grpo":
        inputs |= {"--group-size": "4", "--kl-in": "loss"}
    assert run(inputs, tmp_path / "run", algorithm=algorithm, beta=0.5) == 0
    page = (tmp_path / "run" / "tokens.html").read_text()
    assert re.findall(r'<section id="(\w+)" data-label="([^"]*)"', page) == [
        ("first", "before training"),
        ("newest", "after 3 updates"),
    ]
    articles = page.split("<article>")[1:]
    assert len(articles) == 16
    kls = []
    for article in articles:
        score = float(re.search(r"score <b>([-.\d]+)</b>", article).group(1))
        rewards, kl = (
            sum(float(x) for x in re.findall(rf'data-name="{name}" data-value="([^"]+)"', article))
            for name in ("reward", "kl")
        )
        kls.append(kl)
        assert rewards == pytest.approx(score - (0.5 * kl if algorithm == "ppo" else 0.0), abs=2e-3)
        assert ("value" in re.findall(r'<td data-name="(\w+)"', article)) == (algorithm == "ppo")
    assert max(abs(kl) for kl in kls[:8]) < 1e-4
    assert max(abs(kl) for kl in kls[8:]) > 1e-2


def test_a_price_that_is_annealed_goes_down_to_beta_and_is_resumed_where_it_was(inputs, tmp_path):
    prices = {"beta": 0.1, "beta_start": 0.3, "beta_share": 0.75}
    assert run(inputs, tmp_path / "whole", **prices) == 0
    paid = read_columns(tmp_path / "whole" / "progress.csv")["rollout/beta"]
    assert [beta for beta in paid if beta == beta] == pytest.approx([0.3, 0.3 - 0.2 / 3, 0.1 + 0.2 / 3, 0.1])
    stopped = tmp_path / "stopped"
    interrupted = {"reward": "own_reward:interrupt_at_second_update"} | prices
    assert run(inputs, stopped, **interrupted) == 130
    assert run(inputs, stopped, "--resume", **interrupted) == 0
    assert_same_weights(tmp_path / "whole", stopped)


def test_ctrl_c_keeps_what_was_trained_and_resume_ends_where_an_undisturbed_run_ends(inputs, tmp_path):
    usual = signal.getsignal(signal.SIGINT)
    assert run(inputs, tmp_path / "whole", reward="own_reward:good") == 0
    stopped = tmp_path / "stopped"
    assert run(inputs, stopped, reward="own_reward:interrupt_at_second_update") == 130
    assert not (stopped / "summary.json").exists()
    assert (stopped / "samples.json").exists()
    assert not list(stopped.glob("*.part"))
    assert not torch.equal(
        weights(stopped)["transformer.wte.weight"], weights(tmp_path / "whole")["transformer.wte.weight"]
    )
    assert run(inputs, stopped, "--resume", reward="own_reward:interrupt_at_second_update") == 0
    assert_same_weights(tmp_path / "whole", stopped)
    steps = [read_columns(folder / "progress.csv")["time/steps"] for folder in (tmp_path / "whole", stopped)]
    assert steps[0] == steps[1]
    assert (tmp_path / "whole" / "frontier.csv").read_text() == (stopped / "frontier.csv").read_text()
    assert (tmp_path / "whole" / "tokens.html").read_text() == (stopped / "tokens.html").read_text()
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_finished_run_is_made_longer_to_what_a_run_of_that_length_is(inputs, tmp_path, capsys):
    assert run(inputs, tmp_path / "whole") == 0
    assert run(inputs, tmp_path / "grown", episodes=16) == 0
    assert run(inputs, tmp_path / "grown", "--resume", episodes=16) == 2
    assert "nothing to resume; a larger --episodes makes it longer" in capsys.readouterr().err
    assert run(inputs, tmp_path / "grown", "--resume") == 0
    assert "made longer, from 16 to 32 texts: bit for bit a run of 32 from the start" in capsys.readouterr().out
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "grown")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((tmp_path / "grown" / "summary.json").read_text())["episodes"] == 32
    assert max(read_columns(tmp_path / "grown" / "progress.csv")["time/steps"]) == 32
    assert run(inputs, tmp_path / "falls", episodes=8, learning_rate="0.01:0") == 0
    assert run(inputs, tmp_path / "falls", "--resume", episodes=16, learning_rate="0.01:0") == 0
    assert "not bit for bit a run of 16 from the start: learning_rate followed" in capsys.readouterr().out
    assert run(inputs, tmp_path / "price", episodes=8, beta_start=0.5) == 0
    before = (tmp_path / "price" / "summary.json").read_bytes()
    assert run(inputs, tmp_path / "price", "--resume", episodes=16, beta_start=0.5) == 2
    assert "expected 8, since beta_start falls over a share of them, received 16" in capsys.readouterr().err
    assert (tmp_path / "price" / "summary.json").read_bytes() == before


def test_resume_refuses_other_settings_and_finished_or_missing_runs(inputs, tmp_path, capsys):
    stopped = tmp_path / "stopped"
    assert run(inputs, tmp_path / "none", "--resume") == 2
    assert run(inputs, stopped, reward="own_reward:interrupt_at_second_update") == 130
    capsys.readouterr()
    assert run(inputs, stopped, "--resume", reward="own_reward:interrupt_at_second_update", beta=0.7) == 2
    assert "beta=0.155 (now 0.7)" in capsys.readouterr().err
    damaged = bytearray((stopped / "checkpoint.safetensors").read_bytes())
    damaged[-1] ^= 255
    (stopped / "checkpoint.safetensors").write_bytes(damaged)
    assert run(inputs, stopped, "--resume", reward="own_reward:interrupt_at_second_update") == 2
    assert "damaged" in capsys.readouterr().err


def test_bad_input_is_named_and_leaves_exit_code_two(inputs, tmp_path, capsys):
    def complains(message, name="bad", **changed):
        assert run(inputs, tmp_path / name, **changed) == 2
        assert message in capsys.readouterr().err

    empty, long, lines = tmp_path / "empty.txt", tmp_path / "long.txt", tmp_path / "lines.jsonl"
    empty.write_text("\n\n")
    long.write_text("the film\n" + "very " * 30 + "\n" + "the film\n" * 4)
    lines.write_text('{"prompt": "the film"}\n{"text": "is"}\n')
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        os.link(os.path.join(inputs["--model"], file), bare / file)
    complains("expected at least one row", "a", rows=empty)
    complains("positions", "b", rows=long)
    complains("lines.jsonl:2", "c", rows=lines)
    complains("nowhere.txt", "d", rows=tmp_path / "nowhere.txt")
    complains("no tokenizer there", "e", model=bare)
    complains("no-such-model", "f", model=tmp_path / "no-such-model")
    complains("nan", "g", reward="own_reward:nan")
    complains("no_such", "h", reward="own_reward:no_such")
    complains("holds no reward model", "i", reward=tmp_path)
    with pytest.raises(SystemExit) as refusal:
        run(inputs, tmp_path / "j", episodes=0)
    assert refusal.value.code == 2
    assert "episodes: expected a number >= 1, received 0" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("x")
    complains("choose another --run-dir", "full")


@pytest.mark.parametrize("name", ["nan", "interrupt_at_first_evaluation"])
def test_a_start_that_ends_in_its_first_evaluation_leaves_nothing_new_and_no_old_run_lost(
    inputs, tmp_path, capsys, name
):
    with (tmp_path / "own_reward.py").open("a") as file:
        file.write("def interrupt_at_first_evaluation(prompts, completions):\n    raise KeyboardInterrupt\n")
    folder = tmp_path / "run"
    refused = {"nan": 2, "interrupt_at_first_evaluation": 130}[name]
    assert run(inputs, folder, reward=f"own_reward:{name}") == refused
    assert not folder.exists()
    assert ("nothing half-written" in capsys.readouterr().err) == (refused == 130)
    assert run(inputs, folder, episodes=8) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(inputs, folder, "--overwrite", reward=f"own_reward:{name}") == refused
    assert run(inputs, folder, "--overwrite", rows=tmp_path / "typo.txt") == 2
    assert run(inputs, folder, "--overwrite", model=folder / "model") == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_two_ctrl_c_before_the_first_checkpoint_leave_nothing(inputs, tmp_path, capsys):
    with (tmp_path / "own_reward.py").open("a") as file:
        file.write("def interrupt_twice(prompts, completions):\n")
        file.write("    for _ in range(2 * (len(prompts) == 8)):\n        os.kill(os.getpid(), signal.SIGINT)\n")
        file.write("    return good(prompts, completions)\n")
    assert run(inputs, tmp_path / "run", reward="own_reward:interrupt_twice") == 130
    assert "nothing half-written" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_critic_warm_up_leaves_the_model_as_it_was(inputs, tmp_path):
    assert run(inputs, tmp_path / "run", critic_warmup=4) == 0
    start, after = AutoModelForCausalLM.from_pretrained(inputs["--model"]).state_dict(), weights(tmp_path / "run")
    assert after
    assert all(torch.equal(start[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("value_adapter", ["--value-adapter", "--no-value-adapter"])
def test_adapters_leave_a_small_checkpoint_a_merged_model_and_an_adapter_and_resume(inputs, tmp_path, value_adapter):
    from peft import PeftModel

    flags = ("--memory", "adapters", "--lora-rank", "2", value_adapter)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(inputs, whole, *flags) == 0
    start, tuned = AutoModelForCausalLM.from_pretrained(inputs["--model"]), weights(whole)
    assert any(not torch.equal(start.state_dict()[name], tuned[name]) for name in tuned)
    assert torch.equal(start.state_dict()["transformer.wte.weight"], tuned["transformer.wte.weight"])
    tokens = torch.tensor([[3, 4, 5]])
    merged = AutoModelForCausalLM.from_pretrained(whole / "model")(input_ids=tokens).logits
    adapted = PeftModel.from_pretrained(start, whole / "adapter").eval()(input_ids=tokens).logits
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)
    assert run(inputs, stopped, *flags, reward="own_reward:interrupt_at_second_update") == 130
    assert run(inputs, stopped, *flags, "--resume", reward="own_reward:interrupt_at_second_update") == 0
    assert_same_weights(whole, stopped)


def test_a_run_starts_from_an_adapter_which_is_its_reference(inputs, tmp_path):
    assert run(inputs, tmp_path / "first", "--memory", "adapters") == 0
    first = json.loads((tmp_path / "first" / "summary.json").read_text())
    options = {"adapter": tmp_path / "first" / "adapter", "critic_warmup": 4}
    assert run(inputs, tmp_path / "second", "--memory", "adapters", **options) == 0
    second = json.loads((tmp_path / "second" / "summary.json").read_text())
    assert second["score_before"] == pytest.approx(first["score_after"])
    assert second["kl_per_sequence"] == pytest.approx(0.0, abs=1e-5)  # only the value learned
    assert run(inputs, tmp_path / "third", "--memory", "adapters", adapter=tmp_path) == 2


@pytest.mark.parametrize("memory", ["full", "shared", "adapters"])
def test_bfloat16_recomputation_and_microbatches_go_together(inputs, tmp_path, memory):
    flags = ("--memory", memory, "--dtype", "bfloat16", "--gradient-checkpointing", "--microbatch-size", "2")
    assert run(inputs, tmp_path / "run", *flags, episodes=16) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").dtype == torch.float32


def test_the_plan_is_printed_for_each_memory_and_the_run_says_what_it_took(inputs, tmp_path, capsys):
    flags = ("--memory", "adapters", "--lora-rank", "2")
    assert run(inputs, tmp_path / "planned", *flags, "--plan") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["MiB", "full", "shared", "adapters*"] in lines
    assert "total" in [line[0] for line in lines]
    assert not (tmp_path / "planned").exists()
    assert run(inputs, tmp_path / "run", *flags, episodes=8) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    planned = planned_bytes(
        TrainTextConfig.preset(
            run_dir="none", model=inputs["--model"], rows=inputs["--rows"], memory="adapters", lora_rank=2,
            reward=("own_reward:good",), batch_size=8, minibatch_size=4, max_new_tokens=6,
        )
    )["adapters"]  # fmt: skip
    assert summary["weights_bytes"] == planned["policy_weights"] + planned["critic_weights"]
    assert summary["gradients_bytes"] == planned["gradients"]
    assert summary["adam_states_bytes"] == planned["adam_states"]
    assert summary["peak_memory_bytes"] >= 0


CHAT = "{% for m in messages %}<end> {{ m['content'] }} <end> {% endfor %}{% if add_generation_prompt %}is{% endif %}"


def test_chat_prompts_are_generated_from_in_the_template_and_scored_bare(inputs, tmp_path, capsys):
    assert run(inputs, tmp_path / "none", "--chat-template") == 2
    assert "no chat template" in capsys.readouterr().err
    folder = tmp_path / "chat_model"
    shutil.copytree(inputs["--model"], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    config = TrainTextConfig.preset(
        run_dir="none", model=str(folder), rows=inputs["--rows"], reward=("own_reward:remember",),
        chat_template=True, max_new_tokens=6, num_eval_rows=2, judge=False, batch_size=8, minibatch_size=8,
    )  # fmt: skip
    parts = build_parts(config)
    assert parts.task.assessor.prompts.row(0).tolist() == [0, 3, 4, 0, 5]  # <end> the film <end> is
    samples = parts.task.assessor.write(parts.task.models.start)
    assert samples.openings[0] == "the film\n"
    assert parts.task.assessor.assess(parts.task.models.start).samples.openings == samples.openings
    parts.collector.collect(parts.policy)
    import own_reward

    assert set(own_reward.seen) <= {f"{line}\n" for line in Path(inputs["--rows"]).read_text().split("\n")}
    prompts, _ = parts.task.assessor.decode(parts.collector.last, 1)
    assert prompts[0] in set(own_reward.seen)


def test_a_reward_model_that_is_an_adapter_over_the_same_trunk_lives_on_it(inputs, tmp_path):
    from reward_models import RewardModel

    model = RewardModel.from_backbone(inputs["--model"], lora_rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "reward")
    given = {name[2:].replace("-", "_"): value for name, value in inputs.items() if name in ("--model", "--rows")}
    options = given | {
        "reward": (str(tmp_path / "reward"),),
        "run_dir": "none",
        "judge": False,
        "max_new_tokens": 6,
    }
    shared, apart = (
        build_parts(TrainTextConfig.preset(**options, memory=memory, num_eval_rows=2))
        for memory in ("adapters", "shared")
    )
    samples = shared.task.assessor.write(shared.task.models.start)
    assert (shared.task.assessor.score(samples).scores == apart.task.assessor.score(samples).scores).all()
    assert "reward_0" in shared.policy.adapters.peft.peft_config
    assert shared.policy.adapters.active == "policy"


@pytest.mark.parametrize(
    ("algorithm", "flags"),
    [
        ("grpo", ["--group-size", "4", "--kl-estimator", "full", "--clip-high", "0.28", "--score-clip", "2"]),
        ("rloo", ["--normalize-scores"]),
        ("reinforce", ["--baseline", "moving", "--reward-to-go"]),
        ("dapo", ["--group-size", "4", "--beta", "0", "--overlong-penalty", "0.5"]),
        ("cispo", ["--group-size", "4", "--minibatch-size", "2"]),
    ],
)
def test_every_algorithm_resumes_where_an_undisturbed_run_ends_and_has_no_critic(inputs, tmp_path, algorithm, flags):
    del inputs["--minibatch-size"], inputs["--epochs"]
    arguments = dict(algorithm=algorithm)
    assert run(inputs, tmp_path / "whole", *flags, **arguments) == 0
    stopped, interrupted = tmp_path / "stopped", "own_reward:interrupt_at_second_update"
    assert run(inputs, stopped, *flags, **arguments, reward=interrupted) == 130
    assert run(inputs, stopped, "--resume", *flags, **arguments, reward=interrupted) == 0
    assert_same_weights(tmp_path / "whole", stopped)
    known = PAPERS[algorithm].get("algorithm", algorithm)
    assert json.loads((stopped / "summary.json").read_text())["algorithm"] == known
    asked = json.loads((stopped / "config.json").read_text())
    assert {name: asked[name] for name in ("policy_loss", "average", "clip_high")} == {
        name: getattr(TextAgentConfig.for_algorithm(algorithm), name)
        for name in ("policy_loss", "average", "clip_high")
    } | ({} if algorithm != "grpo" else {"average": "constant", "clip_high": 0.28})
    with open(tmp_path / "whole" / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert "train/value_loss" not in rows[0]
    assert ("train/flat_groups" in rows[0]) == (algorithm != "reinforce")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--algorithm", "grpo", "--batch-size", "12"], "batch_size 12 is no multiple of group_size 8"),
        (["--algorithm", "grpo", "--critic-warmup", "2"], "critic_warmup needs a critic"),
        (["--algorithm", "rloo", "--lam", "0.9"], "lam needs a critic"),
        (["--algorithm", "rloo", "--value-clip", "0.2"], "value_clip needs a critic"),
        (["--algorithm", "rloo", "--minibatch-size", "4"], "minibatch_size 4 is below batch_size"),
        (["--baseline", "batch"], "baseline needs REINFORCE"),
        (["--kl-estimator", "k3"], "kl_estimator needs a KL in the loss"),
        (["--beta-start", "0.5", "--kl-target", "6"], "beta_start and kl_target both move the price"),
        (["--beta-start", "-0.5"], "beta_start: expected a number >= 0, received -0.5"),
        (["--beta-start", "1", "--beta-share", "0"], "beta_share: expected a number in (0, 1], received 0"),
        (["--score-clip", "0"], "score_clip: expected a number > 0, received 0"),
        (["--beta", "-1"], "beta: expected a number >= 0, received -1"),
        (["--seed", "-1"], "seed: expected a number >= 0, received -1"),
        (["--temperature", "0"], "temperature: expected a number in [0.01, 100], received 0"),
        (["--algorithm", "dapo", "--batch-size", "24"], "batch_size 24 is no multiple of group_size 16"),
        (["--algorithm", "gspo", "--dual-clip", "3"], "dual_clip needs the clipped loss"),
        (["--algorithm", "reinforce++", "--dynamic-sampling", "3"], "dynamic_sampling needs GRPO or RLOO"),
        (["--algorithm", "dapoo"], "invalid choice 'dapoo'"),
        (["--overlong-cache", "4"], "overlong_cache needs overlong_penalty, which is 0"),
        (["--overlong-penalty", "-1"], "overlong_penalty: expected a number >= 0, received -1"),
        (["--missing-eos-penalty", "-1"], "missing_eos_penalty: expected a number >= 0, received -1"),
        (["--kl-target", "3", "--beta", "0"], "from beta 0 it never moves"),
        (["--kl-target", "3", "--kl-horizon", "50"], "kl_horizon must exceed a fifth of batch_size 256, received 50"),
        (["--kl-horizon", "999"], "kl_horizon is of kl_target, which is not given"),
        (["--beta-share", "0.2"], "beta_share is of beta_start, which is not given"),
        (["--lora-rank", "4"], "lora_rank: this needs memory adapters, received memory full"),
        (["--memory", "full", "--no-value-adapter"], "value_adapter: this needs memory adapters"),
        (["--memory", "adapters", "--adapter", "x", "--lora-rank", "9"], "the adapter that training starts from"),
        (["--reward-uncertainty-coef", "3"], "uncertainty_coef: expected combine"),
        (["--max-concurrent-rows", "0"], "max_concurrent_rows: expected a number >= 1, received 0"),
    ],
)
def test_options_that_do_not_apply_are_refused_at_the_door(flags, said, capsys, tmp_path):
    with pytest.raises(SystemExit) as refusal:
        command_line(["--run-dir", str(tmp_path / "run"), *flags])
    assert refusal.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_slots_change_no_text_and_no_lesson_and_bound_the_planned_cache(inputs, tmp_path):
    # With an eps above all gradients a step is proportional to its gradient, and so is what rounding does to it; with
    # Adam's own a gradient of 0, and rounding's share of it, moves a weight as far as any other.
    steps = {"threads": 1, "learning_rate": 0.3, "adam_eps": 1.0}
    assert run(inputs, tmp_path / "all", **steps) == 0
    assert run(inputs, tmp_path / "three", **steps, max_concurrent_rows=3) == 0
    samples = [json.loads((tmp_path / name / "samples.json").read_text()) for name in ("all", "three")]
    texts = [[(row["prompt"], row["before"], row["after"]) for row in each["samples"]] for each in samples]
    assert texts[0] == texts[1]
    whole, slotted = weights(tmp_path / "all"), weights(tmp_path / "three")
    for name, tensor in whole.items():
        torch.testing.assert_close(slotted[name], tensor, atol=1e-5, rtol=1e-5)
    start = AutoModelForCausalLM.from_pretrained(inputs["--model"]).state_dict()
    assert max(float((start[name] - tensor).abs().max()) for name, tensor in whole.items()) > 1e-2
    planned = []
    for max_concurrent_rows in (None, 2, 16):
        config = TrainTextConfig.preset(
            run_dir="none", model=inputs["--model"], rows=inputs["--rows"], reward=("own_reward:good",),
            judge=False, batch_size=8, minibatch_size=8, max_concurrent_rows=max_concurrent_rows,
        )  # fmt: skip
        planned.append(planned_bytes(config)["shared"]["rollout_cache"])
    assert planned[0] == 4 * planned[1] == planned[2]


def samples_of(completions, openings=("x", "y")):
    completions = np.array(completions)
    return Samples(
        prompts=np.ones((len(completions), 1), dtype=np.int64), completions=completions,
        logprobs=np.where(completions >= 0, -1.0, 0.0), openings=list(openings), endings=["."] * len(completions),
    )  # fmt: skip


def test_figures_by_hand():
    samples = samples_of([[1, 2, 1, 2], [1, 2, -1, -1]])
    assert distinct_bigrams_of_all(samples) == pytest.approx(2 / 4)  # 12, 21, 12 and 12: two of four differ
    ref = np.where(samples.mask, -2.0, np.nan)
    assert perplexity_under(ref, samples.mask) == pytest.approx(np.exp(2.0))
    assert win_rate(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 4.0])) == pytest.approx(0.5)


def test_the_kl_of_an_evaluation_is_the_expected_log_ratio_of_its_texts(inputs):
    """Exact in every state: its mean over texts agrees with the sampled tokens' log-ratio, and strays less."""
    config = TrainTextConfig.preset(
        run_dir="none", model=inputs["--model"], rows=inputs["--rows"], reward=("own_reward:good",),
        max_new_tokens=6, judge=False, batch_size=8, minibatch_size=8,
    )  # fmt: skip
    parts = build_parts(config)
    one = parts.task.assessor.prompts.tokens[0, : parts.task.assessor.prompts.lengths[0]].tolist()
    object.__setattr__(parts.task.assessor, "prompts", [one] * 400)
    assert parts.task.assessor.assess(parts.task.models.start).kl.mean() == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        parts.policy.model.transformer.ln_f.weight.normal_(0.0, 20.0, generator=torch.Generator().manual_seed(0))
    found = parts.task.assessor.assess(parts.policy)
    sampled = np.where(found.samples.mask, found.samples.logprobs - found.ref_logprobs, 0.0).sum(1)
    error = sampled.std() / np.sqrt(len(sampled))
    assert found.kl.mean() > 0.1
    assert (found.kl >= 0).all()
    assert abs(found.kl.mean() - sampled.mean()) < 4 * error
    assert found.kl.std() < 0.75 * sampled.std()


def assessment_of(completions, openings, judged, members=None):
    samples = samples_of(completions, openings)
    ref = np.where(samples.mask, -2.0, 0.0)
    kl, scores = np.arange(len(completions), dtype=float), np.ones(len(completions))
    members = {"only": scores} if members is None else {name: np.array(each) for name, each in members.items()}
    scored = ScoredRows(scores=scores, std=np.std(list(members.values()), axis=0), members=members)
    return Assessment(samples=samples, scored=scored, judged=judged, ref_logprobs=ref, kl=kl)


def test_two_assessments_side_by_side_by_hand():
    before = assessment_of([[1, 2], [3, -1]], ("x", "y"), np.array([0.0, 1.0]))
    after = assessment_of([[1, 2], [1, 2]], ("x", "y"), np.array([0.5, 1.0]))
    figures, table = compare(before, after)
    assert figures["judge_win_rate"] == 0.75
    assert figures["kl_per_sequence"] == 0.5
    assert (figures["mean_length_before"], figures["mean_length_after"]) == (1.5, 2.0)
    assert (figures["distinct2_before"], figures["distinct2_after"]) == (1.0, 0.5)
    assert (figures["judge_before"], figures["judge_after"]) == (0.5, 0.75)
    assert table[1] == {
        "prompt": "y", "before": ".", "after": ".", "score_before": 1.0, "score_after": 1.0, "judge_before": 1.0,
        "judge_after": 1.0,
    }  # fmt: skip


def test_several_scorers_are_told_apart_in_the_comparison():
    before = assessment_of([[1], [2]], ("x", "y"), None, {"one": [1.0, 3.0], "two": [1.0, 5.0]})
    after = assessment_of([[1], [2]], ("x", "y"), None, {"one": [0.0, 0.0], "two": [4.0, 2.0]})
    figures, _ = compare(before, after)
    assert (figures["score/one_before"], figures["score/two_before"]) == (2.0, 3.0)
    assert (figures["score/one_after"], figures["score/two_after"]) == (0.0, 3.0)
    assert (figures["score_disagreement_before"], figures["score_disagreement_after"]) == (0.5, 1.5)
    alone, _ = compare(*(assessment_of([[1]], ("x",), None) for _ in range(2)))
    assert not [name for name in alone if name.startswith(("score/", "score_disagreement"))]


def test_texts_of_different_prompts_are_not_compared():
    with pytest.raises(ValueError, match="expected samples of the same prompts"):
        compare(assessment_of([[1], [2]], ("x", "y"), None), assessment_of([[1], [2]], ("x", "z"), None))


def test_a_template_that_writes_the_date_is_resumed_with_the_date_of_its_run(inputs, tmp_path, monkeypatch):
    folder = tmp_path / "dated"
    shutil.copytree(inputs["--model"], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ ['good', 'bad'][strftime_now('%d')|int - 1] }} " + CHAT
    tokenizer.save_pretrained(folder)

    def on(day, run_dir, *flags, **changed):
        monkeypatch.setattr(run_dir_module, "datetime", SimpleNamespace(now=lambda: datetime(2026, 11, day)))
        return run(inputs | {"--model": str(folder)}, run_dir, "--chat-template", *flags, **changed)

    assert on(1, tmp_path / "whole") == 0
    interrupted = {"reward": "own_reward:interrupt_at_second_update"}
    assert on(1, tmp_path / "run", **interrupted) == 130
    assert on(2, tmp_path / "run", "--resume", **interrupted) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_the_learning_rate_follows_the_size_of_the_model_and_is_stated(inputs, tmp_path, capsys):
    del inputs["--learning-rate"]
    assert run(inputs, tmp_path / "run", episodes=8) == 0
    assert re.search(
        r"learning rate 0\.0004, in a straight line to 0 for 0\.\d million parameters", capsys.readouterr().out
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["learning_rate"] == {"start": 4e-4, "end": 0.0}
    config = TrainTextConfig.preset(run_dir="")
    assert config.settled(135_000_000).learning_rate.start == pytest.approx(1e-5)
    assert config.settled(8_000_000_000).learning_rate.start == pytest.approx(1e-6)
    assert TrainTextConfig.preset(run_dir="", memory="adapters").settled(135_000_000).learning_rate.start == 1e-4
    assert TrainTextConfig.preset(run_dir="", learning_rate=3e-3).settled(135_000_000).learning_rate == 3e-3


def test_a_broken_file_is_refused_with_its_name_on_resume(inputs, tmp_path, capsys):
    out = tmp_path / "run"
    stopping = inputs | {"--reward": "own_reward:interrupt_at_second_update"}
    assert run(stopping, out) == 130
    for name, content, said in (
        ("state.json", '{"other": 1}', "expected seconds, tokens in it, received other"),
        ("state.json", "[]", "expected a JSON object, received list"),
        ("state.json", '{"sec', "a file that cannot be read"),
        ("config.json", '{"sec', "a file that cannot be read"),
        ("config.json", "[]", "expected a JSON object, received list"),
        ("checkpoint.safetensors", "", "damaged"),
    ):
        whole = (out / name).read_bytes()
        (out / name).write_text(content)
        assert run(stopping, out, "--resume") == 2
        words = capsys.readouterr().err
        assert f"{out / name}" in words
        assert said in words
        (out / name).write_bytes(whole)


def test_a_checkpoint_of_another_command_is_refused_by_name(inputs, tmp_path, capsys):
    from agents.runs import checkpoint

    out = tmp_path / "run"
    stopping = inputs | {"--reward": "own_reward:interrupt_at_second_update"}
    assert run(stopping, out) == 130
    checkpoint.save(out / "checkpoint.safetensors", {"module": {}})
    assert run(stopping, out, "--resume") == 2
    assert f"{out / 'checkpoint.safetensors'} is not of this run" in capsys.readouterr().err


def test_stop_on_an_alarm_leaves_the_run_at_the_last_checkpoint_before_it(inputs, tmp_path, capsys):
    sizes = {"episodes": 2048, "batch_size": 128, "minibatch_size": 64, "max_new_tokens": 16, "learning_rate": 0.003}
    given = sizes | {"checkpoint_every": 2, "evaluate_every": 0, "beta": 0.0}
    assert run(inputs, tmp_path / "watched", stop_on="shortcut", **given) == 0
    said = capsys.readouterr().err
    summary = json.loads((tmp_path / "watched" / "summary.json").read_text())
    lines = {line["name"]: line for line in json.loads((tmp_path / "watched" / "monitors.json").read_text())}
    assert summary["stopped_by"] == "shortcut"
    assert summary["episodes"] % 256 == 0
    assert summary["episodes"] < lines["shortcut"]["fired_at"] < 2048
    assert f"stopped by shortcut: back at the checkpoint after {summary['episodes']} texts" in said
    assert "monitor shortcut after" in said
    assert run(inputs, tmp_path / "short", **(given | {"episodes": summary["episodes"] or 128})) == 0
    assert summary["episodes"] > 0
    assert_same_weights(tmp_path / "watched", tmp_path / "short")
    columns = read_columns(tmp_path / "watched" / "progress.csv")["monitor/shortcut"]
    assert max(value for value in columns if value == value) > 1.0
    with pytest.raises(SystemExit):
        run(inputs, tmp_path / "typo", stop_on="shortcuts")
    assert "did you mean shortcut?" in capsys.readouterr().err
    assert run(inputs, tmp_path / "watched", "--resume", **(given | {"episodes": 2560})) == 0
    assert json.loads((tmp_path / "watched" / "summary.json").read_text())["episodes"] == 2560
