"""Words that came and went."""

from itertools import product

from agents.reports.changes import changes


def longest(a, b):
    """The length of a longest common subsequence, by its definition."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest(a[1:], b[1:])
    return max(longest(a[1:], b), longest(a, b[1:]))


def test_what_is_not_common_is_marked_and_white_space_stays_where_it_was():
    old, new = changes(" is a  bad film.\n", "is a good old film.")
    assert old == [(False, " "), (False, "is a"), (False, "  "), (True, "bad"), (False, " "), (False, "film."),
                   (False, "\n")]  # fmt: skip
    assert new == [(False, "is a"), (False, " "), (True, "good old"), (False, " "), (False, "film.")]
    assert changes("", "") == ([], [])
    assert changes("a", "") == ([(True, "a")], [])


def test_a_longest_common_subsequence_is_kept_of_all_short_texts():
    texts = [words for size in range(5) for words in product("ab", repeat=size)]
    for a, b in product(texts, texts):
        old, new = changes(" ".join(a), " ".join(b))
        kept = [[word for changed, piece in side if not changed for word in piece.split()] for side in (old, new)]
        assert kept[0] == kept[1]
        assert len(kept[0]) == longest(a, b)
        assert ["".join(piece for _, piece in side) for side in (old, new)] == [" ".join(a), " ".join(b)]
