"""``progress.csv``: one line a dump, also over a run that was killed and resumed; whole after a kill at any moment.

Stable-Baselines3's own writer begins the file anew each time, and rewrites it in place when a column is added.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from reward_models.aside import aside


class ProgressCSV(KVWriter):
    """An output format for Stable-Baselines3's logger.

    With ``resume_at`` it goes on with the file that lies there, of which the lines up to this step are kept (what came
    after will come again); None begins anew.
    """

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        self.path = path
        self.columns: list[str] = []
        rows: list[dict[str, str]] = []
        if resume_at is not None and path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if self._is_kept(row, resume_at)]
                self.columns = list(reader.fieldnames or [])
        self._rewrite(rows)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one line; a name that is new becomes a column, empty in the lines before."""
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        new = [name for name in values if name not in self.columns]
        if new:
            self.close()
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        self._writer.writerow(values)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _is_kept(self, row: dict[str, Any], resume_at: int) -> bool:
        """Whether a line is whole (a kill may have cut the last one) and not after ``resume_at``."""
        step = row.get("time/steps")
        return None not in row.values() and bool(step) and float(step or 0) <= resume_at

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with aside(self.path) as part:
            self._file = part.open("w", newline="", encoding="utf-8")
            self._writer = csv.DictWriter(self._file, self.columns, restval="", lineterminator="\n")
            if self.columns:
                self._writer.writeheader()
            self._writer.writerows(rows)
            self._file.flush()
