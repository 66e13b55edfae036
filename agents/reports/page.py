"""`report.html`: a run on one page that needs no network and no scripts. Every text of the run is escaped."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agents.reports import figures, panels, sections
from agents.reports.chart import number
from agents.reports.run_files import Run, read_run
from agents.reports.statistics import Interval
from agents.runs.run_dir import flat
from reward_models.aside import write_aside

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write the page of the run in ``folder``, finished or not; its path. Errors as `read_run`."""
    write_aside(folder / REPORT, report_page(read_run(folder)))
    return folder / REPORT


def report_page(run: Run, *, stamp: str | None = None) -> str:
    """The page as HTML; one with a ``stamp`` renews itself whenever the stamp of the address it came from changes."""
    return render("report.html", run=run, stamp=stamp)


def render(template: str, **values: Any) -> str:
    """A template of this room, with ``values``."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"sections": sections, "figures": figures, "panels": panels}
    made.filters |= {"number": shown, "change": change, "interval": interval, "flat": flat}
    return made


def shown(value: object) -> str:
    """A number with four digits, or whatever else it is as text; nothing for None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return number(value) if math.isfinite(value) else "–"


def change(value: float) -> str:
    """A number with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def interval(ends: Interval) -> str:
    """An interval's ends; nothing if they are not known."""
    return f"[{number(ends[0], 3)}, {number(ends[1], 3)}]" if all(map(math.isfinite, ends)) else ""
