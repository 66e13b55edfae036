import json

import pytest

from scripts.benchmarks.control import compare as bench


@pytest.fixture
def runs(monkeypatch):
    """Every training is replaced by one that notes its command and leaves invented figures."""
    commands = []

    def run_once(folder, module_and_flags):
        parts = [str(part) for part in module_and_flags]
        commands.append(parts)
        seed = int(parts[parts.index("--seed") + 1])
        theirs = parts[0] == "scripts.train_zoo" and "ours" not in parts
        summary = {"train_s": 8.0 if theirs else 2.0, "train_cpu_s": 6.0 if theirs else 3.0, "reached": True}
        summary |= {"steps_per_s": 100.0 if theirs else 300.0, "eval_return_mean": float(seed)}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "progress.csv").write_text(f"time/steps,eval/return_mean\n0,0\n10,{seed}\n")
        return summary

    monkeypatch.setattr(bench, "run_once", run_once)
    return commands


def test_every_figure_stands_under_its_row_with_both_sides_and_their_ratio(runs, tmp_path):
    bench.main(bench.Config(run_dir=tmp_path / "run", tasks=("Acrobot-v1",), seeds=4, peer_seeds=2, jobs=1))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    solve, speed = summary["CartPole-v1: seconds to 475"], summary["CartPole-v1: equal work, steps/s"]
    assert (solve["ours"], solve["peer"], solve["ratio"]) == (2.0, 8.0, 0.25)
    assert speed["ratio"] == 3.0
    returns = summary["Acrobot-v1: return at 200,000 steps"]
    assert returns["ours"] == 1.5  # of 0, 1, 2, 3 without the lowest and the highest quarter
    assert returns["peer"] == 0.5
    assert (returns["ours_counts"], returns["sb3_counts"]) == (4, 2)
    assert summary["Acrobot-v1: training, CPU seconds"]["ratio"] == 0.5
    assert summary["Acrobot-v1: TRPO's return at 100,000 steps, beside rl-zoo's published one"]["peer"] == -83.1
    assert (tmp_path / "run" / "table.md").read_text().count("\n") == 7
    assert (tmp_path / "run" / "curves.png").stat().st_size > 0


def test_both_sides_take_the_same_steps_and_evaluations(runs, tmp_path):
    bench.main(
        bench.Config(run_dir=tmp_path / "run", tasks=("Pendulum-v1",), seeds=1, jobs=1, timings=False, trpo=False)
    )
    ours, theirs = runs
    assert ours[0] == "scripts.train_control"
    assert theirs[0] == "scripts.train_zoo"
    assert ours[ours.index("--env") :] == theirs[theirs.index("--env") :]
    assert "150000" in ours


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"Pong"):
        bench.Config(run_dir="x", tasks=("Pong",))
