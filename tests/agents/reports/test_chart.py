"""Charts: where points are, which ticks there are, and what they say in words."""

import math
import re

import pytest

from agents.reports.chart import BOTTOM, HEIGHT, LEFT, MOST, RIGHT, TOP, WIDTH, Axis, Series, chart, number, thinned


def drawn(series, **options):
    return chart(series, title="T", x_label="texts", y_label="nats", **options)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [((0, 10), [0, 2, 4, 6, 8, 10]), ((0.1, 0.9), [0, 0.2, 0.4, 0.6, 0.8, 1]), ((-3, 5), [-4, -2, 0, 2, 4, 6]),
     ((7, 7), [2, 4, 6, 8, 10, 12]), ((1e-9, 3e-9), [1e-9, 1.5e-9, 2e-9, 2.5e-9, 3e-9])],
)  # fmt: skip
def test_ticks_are_round_and_enclose_the_values(values, ticks):
    assert Axis(values, whole=True).ticks == pytest.approx(ticks)


def test_an_axis_that_is_not_whole_ends_with_the_values_and_has_only_ticks_within():
    axis = Axis((256, 8192))
    assert axis.ticks == [2000, 4000, 6000, 8000]
    assert (axis.place(256), axis.place(8192)) == (0, 1)


def test_on_a_root_axis_four_times_the_value_is_twice_the_length():
    axis = Axis((0.0, 16.0), root=True)
    assert [axis.place(value) for value in (0, 1, 4, 16)] == [0, 0.25, 0.5, 1]
    assert Axis((0.0, 0.0), root=True).place(0.0) == 0


def test_points_lie_where_their_values_are():
    svg = drawn([Series(name="a", x=[0, 5, 10], y=[0, 5, 10])])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    middle = f"{(LEFT + right) / 2:.1f},{(TOP + bottom) / 2:.1f}"
    assert f'd="M{LEFT:.1f},{bottom:.1f}L{middle}L{right:.1f},{TOP:.1f}"' in svg


def test_a_chart_says_in_words_what_it_shows_and_escapes_names():
    svg = drawn([Series(name='a"<b>', x=[1, 2, 3], y=[0.5, math.nan, -2])])
    assert 'aria-label="T, nats over texts. a&#34;&lt;b&gt;: 0.5 at first, −2 at 3, lowest −2, highest 0.5"' in svg
    assert "<b>" not in svg
    assert ">texts</text>" in svg
    assert ">nats</text>" in svg
    assert drawn([Series(name="", x=[1], y=[math.nan])]) is None
    assert drawn([]) is None


def test_bands_whiskers_and_thresholds_are_within_the_frame():
    for whiskers in (False, True):
        line = Series(name="", x=[0, 1, 2], y=[1, 2, 3], low=[-1, 0, math.nan], high=[5, 6, 9], whiskers=whiskers)
        svg = drawn([line], threshold=20.0)
        heights = [float(y) for _, y in re.findall(r"([\d.]+),([\d.-]+)", svg)]
        assert all(TOP <= y <= HEIGHT - BOTTOM for y in heights)
        assert svg.count('class="whisker') == (2 if whiskers else 0)
        assert svg.count('class="band') == (0 if whiskers else 1)


def test_long_lines_are_thinned_and_keep_their_spikes():
    points = [(float(i), math.sin(i / 50)) for i in range(10_000)]
    points[4321] = (4321.0, 99.0)
    points[77] = (77.0, -99.0)
    few = thinned(points)
    assert len(few) <= MOST
    assert few == sorted(few)
    assert {points[0], points[77], points[4321], points[-1]} <= set(few)
    assert thinned(points[:MOST]) == points[:MOST]


def test_numbers_are_for_people():
    values = (0.0, -0.0, -1.5, 12345, 2_000_000, 1 / 3, 1e-7)
    assert [number(value) for value in values] == ["0", "0", "−1.5", "12.35k", "2M", "0.3333", "1e−07"]
