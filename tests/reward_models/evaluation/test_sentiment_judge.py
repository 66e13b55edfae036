import numpy as np
import pytest

from reward_models.data.movie_reviews import LabeledReview
from reward_models.evaluation import sentiment_judge
from reward_models.evaluation.sentiment_judge import Judge

GOOD = ["a fine film", "fine acting, a joy", "a joy of a film", "fine fine plot"]
BAD = ["a dull film", "dull acting, a bore", "a bore of a film", "dull dull plot"]
REVIEWS = [LabeledReview(text=t, label=1) for t in GOOD] + [LabeledReview(text=t, label=0) for t in BAD]


@pytest.fixture(scope="module")
def judge():
    return Judge.fit(REVIEWS)


def test_scores_are_the_log_odds_of_the_fitted_regression(judge):
    sklearn_text = pytest.importorskip("sklearn.feature_extraction.text")
    from sklearn.linear_model import LogisticRegression

    texts = [review.text.lower() for review in REVIEWS]
    vectorizer = sklearn_text.TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(vectorizer.fit_transform(texts), [1] * 4 + [0] * 4)
    new = ["A FINE<br />bore", "a joy", "nothing known"]
    expected = model.decision_function(vectorizer.transform(["a fine bore", "a joy", "nothing known"]))
    np.testing.assert_allclose(judge.score(new), expected, rtol=1e-6)


def test_good_words_score_above_bad_words(judge):
    fine, dull = judge.score(["a fine story", "a dull story"])
    assert fine > 0 > dull


def test_a_fitted_judge_is_cached_and_a_damaged_cache_is_made_again(judge, tmp_path, monkeypatch):
    fits = []
    monkeypatch.setattr(sentiment_judge, "judge_reviews", lambda: fits.append(1) or REVIEWS)
    texts = [*GOOD, "unknown", ""]
    for expected_fits in (1, 1):
        np.testing.assert_allclose(Judge.fit_or_load(tmp_path).score(texts), judge.score(texts), rtol=1e-5)
        assert len(fits) == expected_fits
    path = tmp_path / "judge.npz"
    path.write_bytes(path.read_bytes()[:200])
    np.testing.assert_allclose(Judge.fit_or_load(tmp_path).score(texts), judge.score(texts), rtol=1e-5)
    assert len(fits) == 2
    monkeypatch.setitem(sentiment_judge.RECIPE, "version", "another")
    Judge.fit_or_load(tmp_path)
    assert len(fits) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["judge.npz"]


def test_reviews_of_one_label_are_refused():
    with pytest.raises(ValueError, match="both labels"):
        Judge.fit(REVIEWS[:4])


@pytest.mark.slow
def test_the_projects_judge_agrees_with_the_human_ratings_as_documented(tmp_path):
    assert Judge.fit_or_load(tmp_path).human_gap_accuracy() == pytest.approx(0.80, abs=0.01)
