import itertools

import numpy as np
import pytest
import torch

from reward_models.data.comparisons import (
    Mixture,
    RatedGroups,
    group_comparisons,
    pair_comparisons,
    rating_counts,
    split_snippets,
)
from reward_models.data.movie_ratings import RatedSnippet, normalize_text
from reward_models.data.pairs import PreferencePair
from reward_models.evaluation.accuracy import accuracy_by_length, comparison_accuracy, gap_accuracy, human_pair_accuracy
from reward_models.losses import bradley_terry_loss

THREE = [
    RatedSnippet(text="a", ratings=(2, 3, 2)),
    RatedSnippet(text="b", ratings=(0, 2)),
    RatedSnippet(text="c", ratings=(-4, 1, -1, -1)),
]


def sign(x):
    return int(x > 0) - int(x < 0)


def test_group_weights_are_the_shares_of_all_rater_pairs_counted_one_by_one():
    batch = group_comparisons(THREE)
    weights = {(c, r): w for c, r, w in zip(batch.chosen, batch.rejected, batch.weights, strict=True)}
    for i, j in itertools.permutations(range(3), 2):
        wins = [x > y for x in THREE[i].ratings for y in THREE[j].ratings]
        assert weights.get((i, j), 0) == pytest.approx(sum(wins) / len(wins))
    assert batch.num_pairs == 3


def test_the_loss_of_a_group_is_the_mean_over_all_comparisons_that_are_not_ties():
    rewards = torch.tensor([0.7, -0.2, 0.4])
    two = THREE[:2]
    batch = group_comparisons(two)
    loss = bradley_terry_loss(rewards[batch.chosen], rewards[batch.rejected], weights=torch.tensor(batch.weights))
    leads = [sign(x - y) * (rewards[0] - rewards[1]) for x in two[0].ratings for y in two[1].ratings if x != y]
    torch.testing.assert_close(loss, torch.stack([torch.log1p(torch.exp(-lead)) for lead in leads]).mean())


def test_an_epoch_has_each_snippet_at_most_once_and_regroups(rng):
    snippets = [RatedSnippet(text=str(i), ratings=(i % 9 - 4, 0)) for i in range(50)]
    groups = RatedGroups(snippets=snippets, group_size=8)
    first, second = ([tuple(batch.texts) for batch in groups.epoch(rng)] for _ in range(2))
    assert len(first) == len(groups) == 6
    assert len(set(itertools.chain(*first))) == 48
    assert first != second
    assert len(list(Mixture(sources=[groups, groups]).epoch(rng))) == 12


def test_equal_texts_up_to_case_and_punctuation_fall_on_one_side():
    snippets = [RatedSnippet(text=text, ratings=(1,)) for i in range(40) for text in (f"Text {i}.", f"text, {i}")]
    train, heldout = split_snippets(snippets, heldout_share=0.25)
    sides = [{normalize_text(snippet.text) for snippet in side} for side in (train, heldout)]
    assert not sides[0] & sides[1]
    assert (len(train), len(heldout)) == (60, 20)
    assert split_snippets(snippets, heldout_share=0.25) == (train, heldout)
    with pytest.raises(ValueError, match="heldout_share: expected two non-empty sides"):
        split_snippets(snippets[:2])


def test_human_pair_accuracy_equals_leaving_raters_out_one_by_one(rng):
    snippets = [
        RatedSnippet(text=str(i), ratings=tuple(rng.integers(-4, 5, size=rng.integers(2, 6)).tolist()))
        for i in range(12)
    ]
    values = []
    for a, b in itertools.permutations(snippets, 2):
        if a.mean - b.mean >= 1:
            cases = []
            for i, j in itertools.product(range(len(a.ratings)), range(len(b.ratings))):
                others = [np.mean(np.delete(x.ratings, k)) for x, k in ((a, i), (b, j))]
                said, truth = sign(a.ratings[i] - b.ratings[j]), sign(round(others[0] - others[1], 9))
                cases.append(0.5 if 0 in (said, truth) else float(said == truth))
            values.append(np.mean(cases))
    assert human_pair_accuracy(snippets) == pytest.approx(np.mean(values), abs=1e-5)


def test_accuracies_by_hand():
    assert gap_accuracy(np.array([3.0, 2.0, 1.0]), THREE) == 1
    assert gap_accuracy(np.array([0.0, 2.0, 0.0]), THREE) == pytest.approx((0 + 0.5 + 1) / 3)
    two = [RatedSnippet(text="a", ratings=(1, 0)), RatedSnippet(text="b", ratings=(0, 0))]
    assert comparison_accuracy(np.array([1.0, 0.0]), group_comparisons(two)) == 1  # the raters' ties are left out
    assert comparison_accuracy(np.array([0.0, 0.0]), group_comparisons(two)) == 0.5
    with pytest.raises(ValueError, match="expected a comparison with weight"):
        comparison_accuracy(np.zeros(2), group_comparisons([two[1], two[1]]))
    with pytest.raises(ValueError, match="no pair of the 2"):
        gap_accuracy(np.zeros(2), two)
    with pytest.raises(ValueError, match=r"scores: expected 3, .* received 2"):
        gap_accuracy(np.zeros(2), THREE)


def test_accuracy_on_comparisons_is_weighted_and_one_less_that_of_the_opposite_scores(rng):
    scores, batch = rng.normal(size=3), group_comparisons(THREE)
    right = scores[batch.chosen] > scores[batch.rejected]
    assert comparison_accuracy(scores, batch) == pytest.approx(batch.weights[right].sum() / batch.weights.sum())
    assert comparison_accuracy(-scores, batch) == pytest.approx(1 - comparison_accuracy(scores, batch))


def test_accuracy_by_length_by_hand():
    def pair(chosen, rejected):
        return PreferencePair(prompt="", chosen=chosen, rejected=rejected)

    batch = pair_comparisons([pair("long", "s"), pair("long", "m"), pair("s", "long"), pair("m", "s"), pair("t", "s")])
    lengths = np.array([{"long": 9, "m": 5, "s": 2, "t": 2}[text] for text in batch.texts])
    # Scores by length alone: right in the three pairs whose longer text was chosen, wrong in the one where it was not.
    found = accuracy_by_length(lengths.astype(float), lengths, batch)
    assert found == {
        "longer_chosen_share": 3 / 4, "pair_accuracy_longer_chosen": 1.0, "pair_accuracy_longer_rejected": 0.0
    }  # fmt: skip
    assert accuracy_by_length(-lengths.astype(float), lengths, batch)["pair_accuracy_longer_rejected"] == 1.0
    nothing = accuracy_by_length(np.zeros(4), np.full(4, 3), batch)
    assert list(nothing.values()) == [None, None, None]


def test_divided_judgments_count_by_their_shares_in_accuracy_by_length():
    # Of four comparisons rater against rater a is above b in three and below in one: 3/4 against 1/4.
    two = [RatedSnippet(text="a", ratings=(2, 0)), RatedSnippet(text="b", ratings=(1, -1))]
    found = accuracy_by_length(np.array([1.0, 0.0]), np.array([5, 3]), group_comparisons(two))
    assert found == {
        "longer_chosen_share": 3 / 4, "pair_accuracy_longer_chosen": 1.0, "pair_accuracy_longer_rejected": 0.0
    }  # fmt: skip
    assert comparison_accuracy(np.array([1.0, 0.0]), group_comparisons(two)) == 3 / 4


def test_rating_counts_run_from_minus_four_to_four():
    np.testing.assert_array_equal(rating_counts(THREE)[2], [1, 0, 0, 2, 0, 1, 0, 0, 0])
