"""The report on reward models by hand: members whose scores are known."""

import json
import math

import numpy as np
import pytest
import torch

from reward_models.data.movie_ratings import RatedSnippet
from reward_models.data.pairs import PreferencePair
from reward_models.evaluation.report import bins_table, draw_bins, gibberish, pair_report, rating_report


class Tokenizer:
    all_special_ids = (0,)

    def __len__(self):
        return 10


class Member:
    """Scores a row by looking up its length; ``std`` turns scores into raw rewards."""

    tokenizer = Tokenizer()

    def __init__(self, by_length, std):
        self.by_length, self.std = by_length, torch.tensor(std)

    def encode(self, texts):
        return [[0, *range(1, 1 + len(text.split())), 0] for text in texts]

    def score_rows(self, rows):
        return np.array([self.by_length[len(row)] for row in rows], dtype=np.float32)


ONE, TWO, THREE = 3, 4, 5
"""Lengths of texts of one, two, three words between two special tokens."""
PAIRS = [
    PreferencePair(prompt="", chosen="a b c", rejected="a"),
    PreferencePair(prompt="", chosen="a b c", rejected="x y"),
    PreferencePair(prompt="", chosen="x", rejected="x y"),
]


def test_figures_of_one_model_by_hand():
    # Raw rewards: log 3 for three words, 0 for one or two. P = 3/4, 3/4, 1/2 (a tie, half right).
    model = Member({ONE: 1.0, TWO: 1.0, THREE: 2.0}, std=math.log(3))
    figures, bins = pair_report([model], PAIRS)
    assert figures["pair_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    # The tie is exactly calibrated: said 1/2, half right. The others: said 3/4, all right.
    assert figures["calibration_error"] == pytest.approx(2 / 3 * 0.25)
    # Four texts: "a b c", "a", "x y", "x".
    assert figures["score_mean"] == pytest.approx(5 / 4)
    assert figures["score_std"] == pytest.approx(math.sqrt(3) / 4)
    assert figures["longer_chosen_share"] == pytest.approx(2 / 3)
    assert figures["pair_accuracy_longer_chosen"] == 1
    assert figures["pair_accuracy_longer_rejected"] == 0.5
    assert figures["num_heldout_pairs"] == 3
    assert "disagreement" not in figures
    assert bins.share.sum() == pytest.approx(1)


def test_figures_of_an_ensemble_by_hand():
    right, wrong = Member({ONE: 0.0, TWO: 0.0, THREE: 3.0}, 1.0), Member({ONE: 1.0, TWO: 1.0, THREE: 0.0}, 2.0)
    figures, _ = pair_report([right, wrong], PAIRS[:2])
    assert (figures["member_0_pair_accuracy"], figures["member_1_pair_accuracy"]) == (1, 0)
    assert figures["pair_accuracy"] == 1  # means 1.5 against 0.5
    assert figures["disagreement"] == pytest.approx((1.5 + 0.5 + 0.5) / 3)  # of "a b c", "a" and "x y"
    p = [1 / (1 + math.exp(-3)), 1 / (1 + math.exp(2))]  # leads in raw rewards: 3 times 1, -1 times 2
    assert np.mean(p) > 0.5
    assert figures["calibration_error"] == pytest.approx(1 - np.mean(p))  # always right
    assert figures["member_0_calibration_error"] == pytest.approx(1 - p[0])
    assert figures["member_1_calibration_error"] == pytest.approx(1 - p[1])  # sure of the wrong one, never right
    assert figures["members"] == 2


def test_ratings_have_the_same_figures_and_their_own():
    snippets = [RatedSnippet(text=text, ratings=r) for text, r in (("a b c", (3, 2)), ("a", (0, 2)), ("x y", (-2, -1)))]
    figures, _ = rating_report([Member({ONE: 0.0, TWO: -1.0, THREE: 1.0}, 1.0)], snippets)
    assert figures["pair_accuracy"] == 1
    assert figures["pair_accuracy_gap1"] == 1
    assert figures["human_pair_accuracy"] > 0.5
    # Judgments that differ: abc over a in 3 of 3 (one tie), abc over xy 4 of 4, a over xy 4 of 4 (shares 3/4, 1, 1).
    assert figures["longer_chosen_share"] == pytest.approx((3 / 4 + 1) / (3 / 4 + 2))


def test_gibberish_keeps_lengths_and_special_tokens_and_is_the_same_each_time():
    model = Member({}, 1.0)
    rows = [[0, 1, 2, 3, 0], [0, 4, 0]] * 20
    found = gibberish(model, rows)
    assert [len(row) for row in found] == [len(row) for row in rows]
    assert all(row[0] == row[-1] == 0 and 0 not in row[1:-1] for row in found)
    assert {token for row in found for token in row[1:-1]} == set(range(1, 10))
    assert found == gibberish(model, rows)


def test_the_bins_can_be_kept_and_drawn(tmp_path):
    _, bins = pair_report([Member({ONE: 0.0, TWO: 0.0, THREE: 3.0}, 1.0)], PAIRS)
    table = json.loads(json.dumps(bins_table(bins)))
    assert len(table["bins"]) == 10
    assert [row["accuracy"] for row in table["bins"] if row["share"] > 0] == [0.5, 1.0]
    assert all(row["confidence"] is None for row in table["bins"] if row["share"] == 0)
    assert draw_bins(bins, tmp_path / "bins.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["bins.png"]
