"""Folders as training commands leave them, written by hand."""

import csv
import json

import pytest

BREAKOUT = '</script></style></textarea><script>alert("1")</script><img src=x onerror=alert(2)>&amp;'
"""Text that tries to leave the place where it is shown."""


@pytest.fixture
def make_run(tmp_path):
    """Write a run: ``make_run("runs/a", script, settings, rows of progress.csv, files by name)``."""

    def write(name, script="train_text", settings=None, rows=(), began="2026-01-02T03:04:05", **files):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "made_by.txt").write_text(f"{script}\n{began}\n")
        (folder / "config.json").write_text(json.dumps(settings or {"seed": 0}))
        columns = list(dict.fromkeys(column for row in rows for column in row))
        if rows:
            with (folder / "progress.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(rows)
        for stem, content in files.items():
            (folder / f"{stem}.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture
def text_run(make_run):
    """A finished run with everything that a run of text can leave, every text of which tries to break out."""
    samples = [
        {
            "prompt": f"the film {i} {BREAKOUT}", "before": f" is bad {BREAKOUT}", "after": " is good",
            "score_before": 0.25 * i, "score_after": 1.0 + 0.5 * i, "judge_before": 0.0, "judge_after": 1.0,
        }
        for i in range(9)
    ]  # fmt: skip
    summary = {
        "score_before": 1.0, "score_after": 3.0, "judge_before": 0.0, "judge_after": 1.0, "judge_win_rate": 1.0,
        "kl_per_sequence": 2.5, "mean_length_before": 20.0, "mean_length_after": 13.0, "wall_s": 75.0,
    }  # fmt: skip
    rows = [
        {
            "time/steps": 64 * i, "rollout/score": i / 10, "rollout/kl_per_sequence": i / 4,
            "rollout/length_mean": 20 - i, "rollout/length_p10": 5, "rollout/length_p90": 24,
        }
        for i in range(1, 9)
    ]  # fmt: skip
    rows += [{"time/steps": 64 * i, "eval/score": i / 8, "eval/score_se": 0.1} for i in (1, 4, 8)]
    monitors = [
        {"name": f"length {BREAKOUT}", "what": "tokens a text", "value": 13.0, "threshold": 15.0, "fired_at": 256},
        {"name": "repetition", "what": "share", "value": 0.01, "threshold": 0.1, "fired_at": None},
    ]
    folder = make_run(
        "text", settings={"seed": 3, "algorithm": "ppo", "episodes": 512, "model": BREAKOUT, "reward": [BREAKOUT]},
        rows=rows, summary=summary, samples={"samples": samples}, monitors=monitors,
        machine={"processor": f"CPU {BREAKOUT}", "cores": 2, "memory_gb": 8.0, "gpu": None, "torch": "2"},
    )  # fmt: skip
    table = "episodes,kl_per_sequence,score,score_se,judge,judge_se\n0,0.0,1.0,0.1,0.0,0.1\n512,2.5,3.0,0.1,1.0,0.1\n"
    (folder / "frontier.csv").write_text(table)
    (folder / "tokens.html").write_text("<!doctype html><title>t</title><p>tokens</p><script>1</script>")
    return folder
