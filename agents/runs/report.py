"""``report.html``: a run on one page without network: settings, summary, curves, samples, what to run next."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from agents.runs.plots import Curve, draw_run
from reward_models.aside import write_aside

REPORT = "report.html"
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{border-bottom:1px solid #ddd;padding:.2rem .8rem .2rem 0;text-align:left;
vertical-align:top;white-space:pre-wrap}pre{background:#f4f4f4;padding:.7rem;overflow-x:auto}img{max-width:100%}
section{overflow-x:auto}@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}td,th{border-color:#444}
pre{background:#282828}img{filter:invert(.9) hue-rotate(180deg)}}"""


def write_report(
    folder: Path,
    script: str,
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    *,
    curves: Sequence[Curve],
    unit: str,
    commands: Sequence[str],
) -> Path:
    """Write the page of the run in ``folder``, which has progress.csv and, if there are samples, samples.json.

    ``curves`` that were not logged are left out; ``unit`` is of the steps; ``{run}`` in ``commands`` is the folder.
    """
    title = f"{script.replace('_', '-')}: {folder.resolve().name}"
    lines = [command.replace("{run}", str(folder)) for command in (*commands, "tensorboard --logdir {run}")]
    sections = [
        ("Summary", _table(("metric", "value"), ((name, _number(value)) for name, value in summary.items()))),
        ("Curves", _picture(folder, curves, unit)),
        ("Samples", _samples(folder / "samples.json")),
        ("Next", f"<pre>{escape(chr(10).join(lines))}</pre>"),
        ("Settings", _table(("setting", "value"), ((name, str(value)) for name, value in settings.items()))),
    ]
    body = "".join(f"<section><h2>{name}</h2>\n{content}</section>\n" for name, content in sections if content)
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    write_aside(
        folder / REPORT, f"{head}\n<h1>{escape(title)}</h1>\n<p>{datetime.now():%Y-%m-%d %H:%M}</p>\n{body}</html>\n"
    )
    return folder / REPORT


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(header, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def _picture(folder: Path, curves: Sequence[Curve], unit: str) -> str:
    """The curves as a PNG inside the page; empty if none was logged."""
    image = BytesIO()
    try:
        draw_run(folder, curves, image, unit=unit)
    except ValueError:  # none of the columns was logged
        return ""
    return f'<img alt="learning curves" src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}">'


def _samples(path: Path) -> str:
    """The run's samples as a table; empty if it has none."""
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"] if path.is_file() else []
    if not samples:
        return ""
    return _table(list(samples[0]), ([_number(value) for value in sample.values()] for sample in samples))
