"""What the rows divide; the runs behind them are put in here."""

import json
import os
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from agents.functional.kl import k2
from agents.recipes.rlhf.config import TrainTextConfig
from scripts.benchmarks.text import peer_environments as bench_text_peers
from scripts.benchmarks.text import rows as bench_text_rows
from scripts.benchmarks.text import speed as bench_text_speed
from scripts.benchmarks.text.rows import (
    best_of_n_row,
    gap_row,
    kl_row,
    learning_row,
    memory_row,
    peer_settings,
    reviews_row,
)
from scripts.benchmarks.text.speed import speed_row


@pytest.fixture
def runs(monkeypatch):
    """Answers of scripts, by the beginning of the run's folder name; the commands are noted."""
    answers, commands = {}, []

    def run_once(folder, module_and_flags, *, threads=1):
        parts = [str(part) for part in module_and_flags]
        commands.append(parts)
        seed = int(parts[parts.index("--seed") + 1]) if "--seed" in parts else None
        found = next(answer for name, answer in answers.items() if folder.name.startswith(name))
        return found if seed is None else found[seed]

    monkeypatch.setattr(bench_text_rows, "run_once", run_once)
    return SimpleNamespace(answers=answers, commands=commands)


def tuned(win, kl):
    figures = {"score_after": 1.0, "distinct2_after": 0.5, "mean_length_after": 9.0}
    return {"judge_win_rate": win, "kl_per_sequence": kl} | figures


def test_speed_is_response_tokens_by_seconds_at_the_median_of_updates():
    def updates(*seconds, tokens):
        return [{"seconds": s, "cpu_s": 2 * s, "response_tokens": tokens} for s in seconds]

    row = speed_row(
        "PPO",
        {"ours": updates(1.0, 2.0, 4.0, tokens=100.0), "peer": updates(10.0, 5.0, 20.0, tokens=50.0)},
        "ours",
        must=2.5,
        aim=3.5,
    )
    assert (row.ours, row.peer, row.ratio) == (50.0, 5.0, 10.0)
    assert row.extremes == {"ours": (25.0, 100.0), "peer": (2.5, 10.0)}
    assert (row.details["ours_seconds"], row.details["peer_cpu_s"], row.details["ratio_by_cpu"]) == (2.0, 20.0, 10.0)
    assert row.counts == {"ours": 3, "peer": 3}


def test_sides_take_turns_and_the_first_round_does_not_count(monkeypatch, tmp_path):
    order = []

    @contextmanager
    def fake(command, log, *, threads):
        def update():
            order.append(command[0])
            return {"seconds": float(len(order))}

        yield update
        order.append(f"end of {command[0]}")

    monkeypatch.setattr(bench_text_speed, "on_demand", fake)
    found = bench_text_speed.in_turn({"ours": ["a"], "peer": ["b"]}, tmp_path, rounds=2, threads=1)
    assert order == ["a", "b"] * 3 + ["end of b", "end of a"]
    assert found == {"ours": [{"seconds": 3.0}, {"seconds": 5.0}], "peer": [{"seconds": 4.0}, {"seconds": 6.0}]}


def test_an_update_is_a_line_each_way_and_an_end_is_told_with_the_last_words(tmp_path):
    script = tmp_path / "peer.sh"
    script.write_text(
        "echo '{\"ready\": true}'\nread line\necho '{\"seconds\": 2.5}'\nread line\necho oh >&2\nexit 3\n"
    )
    with bench_text_peers.on_demand(["sh", str(script)], tmp_path / "logs" / "trl.log", threads=1) as update:
        assert update() == {"seconds": 2.5}
        with pytest.raises(RuntimeError, match="trl ended with 3: oh"):
            update()


def test_a_process_that_never_ends_by_itself_is_ended_with_the_measurement(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["sh", "-c", "echo $$ > pid; echo '{}'; while read line; do :; done; sleep 60"]
    with bench_text_peers.on_demand(command, tmp_path / "log", threads=1):
        pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_environment_with_the_right_version_is_taken_as_it_is_and_any_other_is_made_anew(monkeypatch, tmp_path):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="0.29.1\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    for algorithm in ("ppo", "grpo"):
        (tmp_path / algorithm / "bin").mkdir(parents=True)
        (tmp_path / algorithm / "bin" / "python").touch()
    assert bench_text_peers.peer_python(tmp_path, "ppo") == tmp_path / "ppo" / "bin" / "python"
    assert len(commands) == 1
    bench_text_peers.peer_python(tmp_path, "grpo")
    assert commands[2][1:3] == ["-m", "venv"]
    assert {"trl==1.16.0", "transformers>=5,<6"} <= set(commands[3])


def test_memory_divides_what_is_beyond_the_trunk(runs, tmp_path):
    runs.answers["memory"] = {
        "adapters_beyond_trunk_bytes": 100 * 2**20, "full_beyond_trunk_bytes": 800 * 2**20, "trunk_bytes": 2**20,
    }  # fmt: skip
    row = memory_row(tmp_path, threads=1)
    assert (row.ours, row.peer, row.ratio, row.verdict) == (100.0, 800.0, 1 / 8, "aim")


def test_a_gap_is_that_of_the_worst_environment_over_seeds(runs, tmp_path):
    runs.answers["gap"] = [{"gap_worst": 0.02, "Random_gap": 0.02}, {"gap_worst": 0.03, "Random_gap": 0.01}]
    row = gap_row(tmp_path, "rloo", "gpt2", seeds=2)
    assert row.ratio == pytest.approx(0.025)
    assert row.verdict == "must"
    assert row.details["Random_gap"] == pytest.approx(0.015)
    assert runs.commands[1] == ["scripts.exact_gap", "--policy", "gpt2", "--algorithm", "rloo", "--seed", "1"]


def test_a_seed_beyond_the_kl_budget_has_won_nothing(runs, tmp_path):
    runs.answers["reviews-grpo"] = [tuned(0.9, 7.0), tuned(0.9, 8.1), tuned(0.6, 8.0)]
    row = reviews_row(tmp_path, "grpo", seeds=3, threads=1)
    assert row.ratio == pytest.approx(0.5)
    assert row.details["ours_kl_per_sequence_by_seed"] == [7.0, 8.1, 8.0]


def test_kl_efficiency_divides_gains_over_the_same_start_at_the_last_point_within_the_budget(runs, tmp_path):
    from agents.evaluation.curve import FRONTIER, write_points

    runs.answers["best_of_n"] = {
        "score_best_of_1": 0.1, "score_best_of_64": 2.1, "kl_per_sequence_best_of_64": 3.17, "judge_best_of_64": 1.0,
    }  # fmt: skip
    runs.answers["kl"] = [{}]
    (tmp_path / "kl-0").mkdir()
    walk = [(0, 0.0, 0.2), (256, 3.1, 1.9), (512, 3.2, 1.6), (768, 3.3, 2.4)]
    write_points(
        tmp_path / "kl-0" / FRONTIER,
        [{"episodes": n, "kl_per_sequence": kl, "score": score, "judge": 0.5} for n, kl, score in walk],
    )
    row = kl_row(tmp_path, seeds=1, threads=1)
    assert (row.ours, row.peer) == (pytest.approx(1.5), pytest.approx(2.0))
    assert row.verdict == "missed"  # 0.75 of best-of-64's
    assert row.details["ours_kl_per_sequence_by_seed"] == [3.2]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_learning_sets_our_runs_beside_those_of_the_peer(runs, tmp_path, monkeypatch, algorithm):
    runs.answers[f"learning-{algorithm}"] = [tuned(0.9, 6.0), tuned(0.8, 6.0)]
    theirs = {algorithm: [tuned(0.6, 3.0), tuned(0.5, 3.0)]}
    monkeypatch.setattr(
        bench_text_rows, "tuned_by_peer", lambda runs, peers, algorithm, seed, *, threads: theirs[algorithm][seed]
    )
    row = learning_row(tmp_path, tmp_path, algorithm, seeds=2, threads=1)
    assert (row.ours, row.peer) == (pytest.approx(0.85), pytest.approx(0.55))
    assert row.verdict == "must"
    as_the_peer = {"ppo": "--critic-start reward-model", "grpo": "--kl-in loss --kl-estimator k2"}
    assert as_the_peer[algorithm] in " ".join(runs.commands[0])


def test_the_preset_is_set_beside_the_best_of_64(runs, tmp_path):
    runs.answers["best_of_n"] = {"judge_win_rate_best_of_64": 0.8, "kl_per_sequence_best_of_64": 3.17}
    runs.answers["reviews-ppo"] = [tuned(0.9, 4.0), tuned(0.7, 4.0)]
    row = best_of_n_row(tmp_path, seeds=2, threads=1)
    assert (row.ours, row.peer, row.ratio, row.verdict) == (pytest.approx(0.8), 0.8, pytest.approx(1.0), "")
    assert row.details["peer_kl_per_sequence"] == 3.17


@pytest.mark.parametrize(("algorithm", "beta", "groups"), [("ppo", 0.155, 1), ("grpo", 0.155, 8)])
def test_the_peer_is_trained_with_our_preset_and_its_model_judged(tmp_path, monkeypatch, algorithm, beta, groups):
    from scripts.benchmarks.text.trl_peer import JOB

    folder = tmp_path / f"reviews-trl-{algorithm}-1"

    def train(command, **options):
        job = json.loads((folder / "job.json").read_text())
        assert set(job) <= set(JOB)
        assert (job["rows"] * job["updates"], job["rows"] // job["minibatches"]) == (8192, 64)
        assert (job["learning_rate"], job["kl_coef"], job["seed"]) == (4e-4, beta, 1)
        assert (job["algorithm"], job["group_size"], job["free_reward"]) == (algorithm, groups, False)
        assert min(map(len, json.loads((folder / "inputs/prompts.json").read_text()))) > 1
        return subprocess.CompletedProcess(command, 0, stdout='{"ready": true}\n{"train_s": 7.0}\n', stderr="")

    from agents.recipes.rlhf import prompts as text_parts

    monkeypatch.setattr(text_parts, "prompt_sets", lambda config, tokenizer: (["the film", "i think that"], []))
    monkeypatch.setattr(subprocess, "run", train)
    monkeypatch.setattr(bench_text_peers, "peer_python", lambda peers, algorithm: "python")
    monkeypatch.setattr(bench_text_rows, "judged", lambda model, preset: tuned(0.5, 2.0))
    found = bench_text_rows.tuned_by_peer(tmp_path, tmp_path / "peers", algorithm, 1, threads=1)
    assert found["train_s"] == 7.0
    assert json.loads((folder / "summary.json").read_text()) == found


def test_the_peer_is_paid_what_our_reward_model_scores():
    from reward_models import RewardModel
    from scripts.benchmarks.text.trl_peer import scorer, scores
    from textenvs import assets

    own = RewardModel.load(assets.reward_model_dir())
    rows = own.encode(["the film is good", "no", "a long and rather dull film , which i liked"], finished=True)
    assert scores(scorer(assets.reward_model_dir()), rows) == pytest.approx(own.score_rows(rows).tolist(), abs=1e-5)


def test_the_peers_positions_are_those_of_the_text_without_its_padding(monkeypatch):
    from transformers import GPT2LMHeadModel, GPT2Model

    from scripts.benchmarks.text.trl_peer import count_positions_from_the_text
    from textenvs import assets

    monkeypatch.setattr(GPT2Model, "forward", GPT2Model.forward)
    model = GPT2LMHeadModel.from_pretrained(assets.language_model_dir())
    row = torch.tensor([[5, 9, 700, 31]])
    padded, mask = torch.tensor([[0, 0, 0, 5, 9, 700, 31]]), torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    alone = model(row).logits
    assert not torch.allclose(model(padded, attention_mask=mask).logits[:, 3:], alone, atol=1e-2)
    count_positions_from_the_text()
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 3:], alone, atol=1e-4, rtol=1e-4)


def test_the_gradient_of_the_peers_kl_is_that_of_ours_on_policy():
    # TRL's use_bias_correction_kl: k3 times the ratio to the probabilities that the token was drawn with.
    logprobs, reference = torch.tensor([-0.1, -2.0, -5.0], requires_grad=True), torch.tensor([-0.4, -2.0, -1.5])
    gap = reference - logprobs
    theirs = (logprobs - logprobs.detach()).exp() * (gap.exp() - gap - 1.0)
    found = [torch.autograd.grad(each.sum(), logprobs)[0] for each in (theirs, k2(logprobs, reference))]
    torch.testing.assert_close(*found)


def test_the_padding_of_the_peers_ppo_is_no_token_of_the_model():
    assert peer_settings(TrainTextConfig.preset(run_dir="x").settled(1))["pad_token_id"] == 2048
    grpo = peer_settings(TrainTextConfig.preset("grpo", run_dir="x").settled(1))
    assert grpo["pad_token_id"] == 0  # which it embeds, so one of the model's: the end of a text


def test_the_start_itself_is_judged_to_be_the_start(tmp_path):
    from textenvs import assets

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"the film was number {i}" for i in range(40)) + "\n")
    preset = TrainTextConfig.preset(run_dir="x", rows=str(prompts), judge=False, batch_size=8)
    found = bench_text_rows.judged(assets.language_model_dir(), preset)
    assert found["kl_per_sequence"] == pytest.approx(0.0, abs=1e-5)
    assert found["score_after"] == found["score_before"]
