"""Entry points, each run with `python -m scripts.NAME`; not part of the wheel."""

import os

# The scripts have progress bars and messages of their own.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
