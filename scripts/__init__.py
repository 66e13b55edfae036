"""Entry points, each run with `python -m scripts.NAME`; not part of the wheel."""
