"""The judge of generated texts: TF-IDF over words and word pairs, and logistic regression on IMDB labels.

It shares no texts, raters or features with the reward model. It is fitted on 12,500 of the 25,000 labeled reviews (pair
accuracy on the human ratings at a gap of 1, which ``python -m scripts.judge`` prints: 0.80; on all of them 0.81): the
other half is the language model's training text. Repetition fools a bag of words, so report its win rate with others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.aside import aside
from reward_models.data.movie_ratings import cache_dir, load_rated_snippets
from reward_models.data.movie_reviews import JUDGE_REVIEWS, SHA256, SPLIT_SEED, LabeledReview, judge_reviews
from reward_models.evaluation.accuracy import gap_accuracy

NGRAM_RANGE = (1, 2)
MIN_DF = 2
INVERSE_REGULARIZATION = 10.0
RECIPE = {  # a cached judge must match it
    "version": 1,
    "data_sha256": SHA256,
    "reviews": JUDGE_REVIEWS,
    "split_seed": SPLIT_SEED,
    "ngram_range": list(NGRAM_RANGE),
    "min_df": MIN_DF,
    "inverse_regularization": INVERSE_REGULARIZATION,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """A fitted judge of F features."""

    vocabulary: Sequence[str]  # F terms: a word, or two neighboring words
    idf: np.ndarray  # [F] inverse document frequencies
    coefficients: np.ndarray  # [F] of the logistic regression
    intercept: float

    def __post_init__(self) -> None:
        if len(sizes := {len(self.vocabulary), len(self.idf), len(self.coefficients)}) != 1:
            raise ValueError(f"vocabulary, idf and coefficients: expected one length, received {sorted(sizes)}")
        vectorizer = _vectorizer(vocabulary={term: i for i, term in enumerate(self.vocabulary)})
        vectorizer.idf_ = np.asarray(self.idf, dtype=np.float64)
        object.__setattr__(self, "_vectorizer", vectorizer)

    @classmethod
    def fit(cls, reviews: Sequence[LabeledReview]) -> Judge:
        """Fit on labeled reviews; ValueError if all labels are the same."""
        from sklearn.linear_model import LogisticRegression

        if len({review.label for review in reviews}) < 2:
            raise ValueError("reviews: expected both labels, received one")
        vectorizer = _vectorizer(min_df=MIN_DF)
        features = vectorizer.fit_transform(_plain(review.text for review in reviews))
        model = LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=1000)
        model.fit(features, [review.label for review in reviews])
        return cls(
            vocabulary=vectorizer.get_feature_names_out().tolist(),
            idf=vectorizer.idf_,
            coefficients=model.coef_[0],
            intercept=float(model.intercept_[0]),
        )

    @classmethod
    def fit_or_load(cls, cache: str | Path | None = None) -> Judge:
        """The project's judge, loaded from ``cache`` (default: the project's folder) or fitted and saved there."""
        path = (cache_dir() if cache is None else Path(cache)) / "judge.npz"
        judge = cls.load(path)
        if judge is None:
            judge = cls.fit(judge_reviews())
            judge.save(path)
        return judge

    def save(self, path: Path) -> None:
        """Write an npz file (numbers and bytes, no objects) atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers: dict[str, Any] = {name: getattr(self, name).astype(np.float32) for name in ("idf", "coefficients")}
        numbers |= {"recipe": _as_bytes(json.dumps(RECIPE)), "vocabulary": _as_bytes("\n".join(self.vocabulary))}
        with aside(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **numbers, intercept=np.float64(self.intercept))

    @classmethod
    def load(cls, path: Path) -> Judge | None:
        """The judge that `save` wrote with the current recipe; None if there is none. Nothing is unpickled."""
        try:
            with np.load(path, allow_pickle=False) as content:
                if json.loads(content["recipe"].tobytes()) != RECIPE:
                    return None
                words = content["vocabulary"].tobytes().decode("utf-8").split("\n")
                numbers = {name: content[name] for name in ("idf", "coefficients")}
                return cls(vocabulary=words, **numbers, intercept=float(content["intercept"]))
        except Exception:  # an invalid cached file is fitted again
            return None

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """``[N]`` float64: the log-odds of a positive review; the intercept for a text without known words."""
        features = self._vectorizer.transform(_plain(texts))  # type: ignore[attr-defined]
        return np.asarray(features @ np.asarray(self.coefficients) + self.intercept)

    def human_gap_accuracy(self) -> float:
        """Accuracy on pairs of rated snippets whose mean human ratings differ by at least 1."""
        snippets = load_rated_snippets()[::2]  # every other one: 14 million pairs are enough
        return gap_accuracy(self.score([snippet.text for snippet in snippets]), snippets)


def _vectorizer(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=NGRAM_RANGE, sublinear_tf=True, lowercase=False, **options)


def _plain(texts: Iterable[str]) -> list[str]:
    return [text.replace("<br />", " ").lower() for text in texts]


def _as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)


def command_line() -> int:
    """Print the judge's accuracy on human ratings; returns the exit code."""
    print(f"judge's pair accuracy on human ratings that differ by >= 1: {Judge.fit_or_load().human_gap_accuracy():.4f}")
    return 0
