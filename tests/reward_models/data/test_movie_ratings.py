import pytest

from reward_models.data.movie_ratings import ARCHIVE, fetch_ratings_archive, load_rated_snippets


def test_there_are_10605_snippets_with_at_least_15_ratings_each():
    snippets = load_rated_snippets()
    assert len(snippets) == 10_605
    assert min(len(snippet.ratings) for snippet in snippets) == 15
    assert all(-4 <= rating <= 4 for snippet in snippets for rating in snippet.ratings)
    assert all(snippet.text == snippet.text.strip() != "" for snippet in snippets)
    assert abs(sum(snippet.mean for snippet in snippets) / len(snippets)) < 0.01


def test_an_archive_with_other_bytes_is_refused(tmp_path):
    (tmp_path / ARCHIVE).write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected 5d7c06e0"):
        fetch_ratings_archive(tmp_path)
