"""The page of a run: one file, everything in it escaped, readable without eyes, mouse, color or script."""

import math
import os

import pytest

from agents.reports import figures, sections
from agents.reports.page import write_report
from agents.reports.run_files import read_columns, read_run
from agents.runs.run_dir import RunDirError
from tests.agents.reports.pages import check


def report(folder):
    return check(write_report(folder).read_text())


def test_a_finished_run_shows_everything_and_nothing_breaks_out(text_run):
    page = report(text_run)
    assert len(page.all("script")) == 1  # which opens the view of tokens
    assert 'alert("1")' in page.text  # as text
    for part in (
        "Finished", "train-text", "1 min 15 s", "+2 ", "Before and after", "What a nat bought", "Monitors",
        "after 256 texts", "textenvs frontier --run-dir", "Settings, as in config.json", "3 more of 9", "CPU ",
    ):  # fmt: skip
        assert part in page.text
    charts = [each["aria-label"] for each in page.all("svg")]
    assert "Score of the reward, reward units over texts. texts trained on: 0.1 at first, 0.8 at 512" in charts[2]
    assert any(chart.startswith("Reward over KL, reward units over KL to the start") for chart in charts)
    assert [each["sandbox"] for each in page.all("iframe")] == ["allow-scripts"]
    assert "<p>tokens</p>" in page.all("iframe")[0]["data-page"]


def test_what_changed_is_marked_word_by_word(text_run):
    text = write_report(text_run).read_text()
    assert '<p class="text">is <ins>good</ins></p>' in text
    assert '<p class="text">is <del>bad' in text


def test_intervals_are_of_the_samples_only_where_those_are_what_the_figure_was_measured_on(text_run):
    score, win_rate, *_ = figures.measured(read_run(text_run))
    assert (score.before, score.after, score.change) == (1.0, 3.0, 2.0)
    # Scores 1, 1.5, ... 5: their standard error is sqrt(60 / 9 / 4 / 9) = 0.43.
    assert score.after_interval == pytest.approx((3 - 1.96 * 0.43, 3 + 1.96 * 0.43), abs=0.1)
    assert win_rate.after_interval == (1.0, 1.0)
    summary = text_run / "summary.json"
    summary.write_text(summary.read_text().replace('"score_after": 3.0', '"score_after": 2.0'))
    assert all(map(math.isnan, figures.measured(read_run(text_run))[0].after_interval))


def test_an_empty_run_and_one_of_a_single_point_have_a_page(make_run):
    page = report(make_run("empty"))
    assert "Not finished" in page.text
    assert not page.all("svg")
    one = make_run("one", rows=[{"time/steps": 64, "rollout/score": 0.5, "train/entropy": "nan"}])
    (label,) = [each["aria-label"] for each in report(one).all("svg")]
    assert label.endswith("Score of the reward, reward units over texts. texts trained on: 0.5 at 64")


def test_values_that_are_not_finite_are_left_out_of_curves(make_run):
    rows = [{"time/steps": 8 * i, "train/entropy": value} for i, value in enumerate(["nan", 1.0, "inf", 3.0, "-inf"])]
    (svg,) = report(make_run("nan", rows=rows)).all("svg")
    assert svg["aria-label"].endswith("1 at first, 3 at 24, lowest 1, highest 3")
    rows = [{"time/steps": 8, "train/entropy": "nan"}, {"time/steps": 16, "train/entropy": "nan"}]
    assert not report(make_run("only", rows=rows)).all("svg")


def test_a_run_that_was_ended_half_way_says_how_far_it_came_and_how_to_go_on(make_run):
    rows = [{"time/steps": 64, "eval/score": 0.5}, {"time/steps": 128, "eval/score": 0.75}]
    folder = make_run("my run", settings={"seed": 0, "episodes": 512}, rows=rows)
    with (folder / "progress.csv").open("a") as file:
        file.write("192,0.9")  # is still being written
    page = report(folder)
    assert "Not finished" in page.text
    assert "128 of 512 texts" in page.text
    assert f"textenvs train-text --run-dir '{folder}' --resume" in page.text
    assert "0.75" in page.text
    assert "+0.25" in page.text


def test_a_run_whose_process_lives_is_running(make_run):
    folder = make_run("text")
    (folder / "in_use.pid").write_text(str(os.getppid()))
    assert read_run(folder).state == "running"
    (folder / "in_use.pid").write_text(str(os.getpid()))  # its own page, at the end
    assert read_run(folder).state == "stopped"


def test_damaged_files_are_passed_over(make_run):
    folder = make_run("text", monitors={"not": "a list"}, samples={"samples": [None, {"after": None}]})
    for name in ("config.json", "summary.json", "machine.json", "frontier.csv", "progress.csv"):
        (folder / name).write_text('{"a": \n"x')
    assert "Not finished" in report(folder).text


def test_the_newest_check_that_ended_before_is_shown(make_run):
    def cart_pole(name, mean, hour):
        summary = {"eval_return_mean": mean, "eval_episodes": 100, "algorithm": "ppo"}
        began = f"2026-01-01T{hour:02d}:00:00"
        make_run(name, "train_control", {"env": "CartPole-v1"}, began=began, summary=summary)

    cart_pole("first", 400.0, 1)
    cart_pole("second", 500.0, 2)
    folder = make_run("text", began="2026-01-01T03:00:00")
    cart_pole("later", 1.0, 4)
    claims = {"optimality gap, PPO": "pass: 0.5%", "resumed": "pass: equal", "vllm": "n/a: none", "bias": "FAIL: 1"}
    make_run("proof", "verify", began="2026-01-01T01:00:00", summary={"passed": 2, "failed": 1, **claims})
    found = {verdict.title: verdict for verdict in sections.verdicts(read_run(folder))}
    assert found["CartPole-v1"].passed
    assert found["CartPole-v1"].folder.name == "second"
    assert not found["Proof"].passed
    assert [claim for claim, _ in found["Proof"].lines] == ["optimality gap, PPO", "bias"]
    assert "PPO reached a mean return of 500.0 over 100 greedy episodes" in report(folder).text


def test_a_run_of_stages_has_them_all_on_its_page(make_run, text_run):
    summary = {"env": "CartPole-v1", "eval_return_mean": 500.0, "eval_return_std": 0.0, "eval_episodes": 100}
    rows = [{"time/steps": 64 * i, "eval/return_mean": 100.0 * i, "eval/return_std": 5.0} for i in range(6)]
    folder = make_run("demo", "demo", {"seed": 0}, summary={"wall_s": 4000.0})
    make_run("demo/cartpole", "train_control", {"env": "CartPole-v1"}, rows, summary=summary)
    text_run.rename(folder / "text")
    page = report(folder)
    assert {"stage-1", "stage-2", "stage-1-figures", "stage-2-curves"} <= {each.get("id") for _, each in page.tags}
    assert "solved from 475" in page.text
    assert "1 h 06 min" in page.text


def test_a_large_page_of_tokens_is_linked_and_not_contained(text_run, monkeypatch):
    monkeypatch.setattr(sections, "LARGEST_TOKEN_PAGE", 10)
    page = report(text_run)
    assert not page.all("iframe")
    assert "tokens.html" in [each["href"] for each in page.all("a")]


def test_many_long_samples_of_few_words_take_bounded_time_and_stay_within_three_megabytes(make_run):
    texts = {
        "prompt": "p" * 9999,
        "before": "<b> " * 9999,
        "after": "<c> " * 9999,
        "score_before": 0.0,
        "score_after": 1.0,
    }
    report(make_run("text", samples={"samples": [texts] * 400}))


@pytest.mark.parametrize("script", ["train_control", "train_language_model", "train_reward_model", "pipeline"])
def test_every_command_has_a_page(make_run, script):
    values = dict.fromkeys(("eval_return_mean", "perplexity_before", "perplexity_after", "pair_accuracy"), 0.5)
    rows = [{"time/steps": i, "train/loss": 1 / i, "train/entropy": i} for i in (1, 2, 3)]
    summary = {**values, "eval_return_std": 1.0, "eval_episodes": 4, "wall_s": 1.0}
    page = report(make_run("run", script, rows=rows, summary=summary))
    assert f"textenvs {script.replace('_', '-')}" in page.text
    assert page.all("svg") or script == "pipeline"


def test_a_folder_without_a_run_is_refused_by_name(tmp_path, make_run):
    with pytest.raises(RunDirError, match=f"{tmp_path}: expected the folder of a training run, received no run"):
        write_report(tmp_path)
    with pytest.raises(RunDirError, match="received a run of verify"):
        write_report(make_run("proof", "verify"))


def test_columns_are_numbers_and_empty_fields_nan(tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,\n2,3\n4")
    columns = read_columns(tmp_path / "p.csv")
    assert columns["a"] == [1.0, 2.0]
    assert math.isnan(columns["b"][0])
