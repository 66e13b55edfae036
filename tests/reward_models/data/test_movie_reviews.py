import re

import pytest

from agents.recipes.reward_model import rated_splits
from reward_models.data.movie_ratings import load_rated_words, normalize_text
from reward_models.data.movie_reviews import judge_reviews, judge_sentences, movie_review_splits, openings


@pytest.fixture(scope="module")
def splits():
    return movie_review_splits()


@pytest.fixture(scope="module")
def texts(splits):
    """Normalized texts by purpose; the language model's and the judge's are sentences."""
    reward_train, reward_heldout = rated_splits()
    return {
        "language model": {normalize_text(s) for review in splits.train for s in review},
        "validation": {normalize_text(s) for s in splits.validation},
        "prompts to train": {normalize_text(s) for s in splits.prompt_train},
        "prompts to test": {normalize_text(s) for s in splits.prompt_test},
        "judge": judge_sentences(),
        "reward model": {normalize_text(snippet.text) for snippet in reward_train},
        "reward model, held out": {normalize_text(snippet.text) for snippet in reward_heldout},
    }


def test_no_text_serves_two_purposes(texts):
    purposes = list(texts)
    shared = {
        (one, other): len(texts[one] & texts[other])
        for i, one in enumerate(purposes)
        for other in purposes[:i]
        if texts[one] & texts[other]
    }
    assert shared == {}


def test_whole_reviews_of_the_judge_are_no_rated_snippets(texts):
    judged = {normalize_text(review.text) for review in judge_reviews()}
    assert len(judged) == 12_500
    for purpose in ("reward model", "reward model, held out", "language model"):
        assert not judged & texts[purpose]


def test_the_parts_have_the_sizes_that_the_documented_figures_were_measured_with(splits, texts):
    assert len(texts["reward model"]) + len(texts["reward model, held out"]) == 10_594
    assert {review.label for review in judge_reviews()} == {0, 1}
    assert len(splits.train) == 10_489
    assert min(len(splits.validation), len(splits.prompt_test)) > 2_000


def test_rated_words_are_lower_case_words_with_ten_ratings_each():
    words = load_rated_words()
    assert len(words) > 7_000
    assert {len(word.ratings) for word in words} == {10}
    assert all(-4 <= rating <= 4 for word in words for rating in word.ratings)
    assert {word.text: word.mean > 0 for word in words}["superb"]


def test_openings_are_distinct_short_and_the_same_for_the_same_seed(splits):
    first = openings(splits.prompt_test, num_words=(2, 5), count=200, seed=3)
    assert first == openings(splits.prompt_test, num_words=(2, 5), count=200, seed=3)
    assert len(set(first)) == 200
    assert {len(opening.split()) for opening in first} == {2, 3, 4, 5}
    with pytest.raises(ValueError, match="expected 5 distinct openings, found 1 in 1 sentences"):
        openings(["one two three four five six seven"], num_words=(2, 3), count=5, seed=0)


@pytest.mark.parametrize(
    "text", ["It's  FINE, really!", "Ünïcode – dashes — “quotes”", "", "10/10 \n would\twatch", "İ"]
)
def test_normalized_text_is_its_runs_of_ascii_letters_and_digits(text):

    assert normalize_text(text) == " ".join(re.findall(r"[a-z0-9]+", text.lower()))
