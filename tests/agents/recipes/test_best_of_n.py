"""Best-of-n over all subsets, against enumeration; its bound against the exact KL; the script from a chair."""

import itertools
import json
import math

import numpy as np
import pytest

from agents.evaluation.best_of_n_estimate import best_of_n_kl, best_of_n_means, best_of_n_weights
from agents.evaluation.curve import read_points
from agents.recipes import best_of_n
from agents.recipes.best_of_n import BestOfNConfig, points_of, summary_of


def by_enumeration(scores, values, n):
    """Mean over all subsets of n of the value of the best one; among equals any may be taken."""
    found = []
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        found.append(np.mean([values[i] for i in subset if scores[i] == best]))
    return np.mean(found)


@pytest.mark.parametrize("ties", [False, True])
def test_the_mean_over_subsets_is_that_of_enumeration(ties):
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(3, 7))
    if ties:
        scores = np.round(scores)
        assert min(len(set(row)) for row in scores) < 7
    judged = generator.normal(size=(3, 7))
    for values in (scores, judged):
        means = best_of_n_means(scores, values, 7)
        for row, n in itertools.product(range(3), range(1, 8)):
            assert means[row, n - 1] == pytest.approx(by_enumeration(scores[row], values[row], n))


def test_one_is_the_mean_and_all_is_the_best():
    scores, judged = np.array([[3.0, 1.0, 2.0]]), np.array([[10.0, 20.0, 60.0]])
    means = best_of_n_means(scores, judged, 3)
    # Of two: {3,1} and {3,2} keep the first, {1,2} the last.
    np.testing.assert_allclose(means, [[30.0, (10 + 10 + 60) / 3, 10.0]])


@pytest.mark.parametrize("n", [1, 2, 64, 128])
def test_weights_are_a_distribution(n):
    weights = best_of_n_weights(128, n)
    assert weights.sum() == pytest.approx(1.0)
    assert (np.diff(weights) >= 0).all()
    assert (weights[: n - 1] == 0).all()


def test_the_estimate_is_unbiased():
    """Uniform scores: the best of n has mean n / (n + 1)."""
    scores = np.random.default_rng(1).uniform(size=(20_000, 8))
    means = best_of_n_means(scores, scores, 8).mean(0)
    np.testing.assert_allclose(means, [n / (n + 1) for n in range(1, 9)], atol=0.006)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_bound_on_the_kl_is_the_kl_of_many_texts_none_of_which_tie(n):
    """M equally likely texts of different scores: best-of-n takes the i-th worst with (i/M)^n - ((i-1)/M)^n."""
    count = 4000
    rank = np.arange(1, count + 1)
    taken = (rank / count) ** n - ((rank - 1) / count) ** n
    taken = taken[taken > 0]
    exact = float((taken * np.log(taken * count)).sum())
    assert exact <= best_of_n_kl(n) + 1e-9
    assert exact == pytest.approx(best_of_n_kl(n), abs=0.01)


def test_best_of_64_costs_what_the_issue_says():
    assert best_of_n_kl(64) == pytest.approx(math.log(64) - 63 / 64)
    assert 3.17 < best_of_n_kl(64) < 3.18


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="n: expected 1 or more, received 0"):
        best_of_n_kl(0)
    with pytest.raises(ValueError, match="n: expected 1 to 4, the number of samples, received 5"):
        best_of_n_weights(4, 5)
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 3\)"):
        best_of_n_means(np.zeros((1, 2)), np.zeros((1, 3)), 1)
    with pytest.raises(ValueError, match="finite"):
        best_of_n_means(np.array([[0.0, np.nan]]), np.zeros((1, 2)), 1)
    with pytest.raises(ValueError, match="received 9 of 8"):
        BestOfNConfig(run_dir="none", samples=8, max_n=9)


def test_the_judge_and_its_win_rate_are_of_the_text_that_the_score_chose():
    scores = np.array([[0.0, 1.0], [5.0, 4.0]])
    judged = np.array([[7.0, 1.0], [2.0, 3.0]])
    points = points_of(scores, judged, np.array([1.0, 0.0]), 2)
    assert [point["n"] for point in points] == [1, 2]
    assert [point["score"] for point in points] == [(0.5 + 4.5) / 2, (1 + 5) / 2]
    assert [point["judge"] for point in points] == [(4 + 2.5) / 2, (1 + 2) / 2]
    # The first prompt's rival has 1: 7 beats it, 1 ties; the second's has 0.
    assert [point["judge_win_rate"] for point in points] == [(0.75 + 1) / 2, (0.5 + 1) / 2]
    assert points[1]["score_se"] == pytest.approx(np.std([1, 5], ddof=1) / math.sqrt(2))
    unjudged = points_of(scores, None, None, 2)
    assert unjudged[1]["judge"] is unjudged[1]["judge_win_rate"] is None
    assert unjudged[1]["score"] == points[1]["score"]


def test_the_script_leaves_a_line_for_every_n_and_the_score_rises(model_dir, tmp_path, monkeypatch):
    (tmp_path / "counts_good.py").write_text(
        "def good(prompts, completions):\n    return [float(text.split().count('good')) for text in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(["the film", "a very", "the plot is", "film"] * 20))
    task = {
        "model": str(model_dir), "reward": ("counts_good:good",), "rows": str(tmp_path / "prompts.txt"),
        "max_new_tokens": 6, "judge": False,
    }  # fmt: skip
    summary = best_of_n.main(BestOfNConfig(run_dir=str(tmp_path / "run"), samples=16, max_n=6, **task))
    points = read_points(tmp_path / "run" / "best_of_n.csv")
    assert [point["n"] for point in points] == [1, 2, 3, 4, 5, 6]
    assert [point["kl_per_sequence"] for point in points] == [best_of_n_kl(n) for n in range(1, 7)]
    scores = [point["score"] for point in points]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 0.3
    assert summary["score_best_of_6"] == scores[5]
    assert summary["judge_best_of_6"] is None
    assert {f"score_best_of_{n}" for n in (1, 2, 4, 6)} == {name for name in summary if name.startswith("score_best")}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    again = best_of_n.main(BestOfNConfig(run_dir=str(tmp_path / "again"), samples=16, max_n=6, **task))
    assert again == summary


@pytest.mark.parametrize(("last", "kept"), [(1, [1]), (4, [1, 2, 4]), (5, [1, 2, 4, 5])])
def test_the_summary_names_powers_of_two_and_the_last(last, kept):
    points = points_of(np.arange(8.0).reshape(1, 8), None, None, last)
    assert [int(name.rpartition("_")[2]) for name in summary_of(points) if name.startswith("score")] == kept
