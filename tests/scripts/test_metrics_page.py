from pathlib import Path

from scripts.metrics_page import page


def test_the_page_on_metrics_is_the_codes_own_table():
    assert (Path(__file__).parents[2] / "docs" / "metrics.md").read_text() == page()
