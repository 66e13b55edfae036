"""`tokens.html`: a self-contained page with a few texts of a run's first and newest snapshots, token by token.

The snapshots are inserted into the template `token_page.html` as plain tables, readable without scripts.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path

from agents.evaluation.token_table import QUANTITIES, TokenTable
from reward_models.aside import write_aside

PAGE = "tokens.html"
TEMPLATE = Path(__file__).with_name("token_page.html")
FIRST, NEWEST, END = "<!-- first -->", "<!-- newest -->", "<!-- end -->"
STOPPED = {"eos": "ended by itself (eos)", "length": "ran out of budget (length)"}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Texts of one rollout."""

    algorithm: str  # that computed the advantages
    updates: int  # before the rollout
    texts: int  # trained on before the rollout
    beta: float  # KL coefficient, reward units per nat
    tables: list[TokenTable]


def write_token_page(path: Path, snapshot: Snapshot) -> None:
    """Put ``snapshot`` on the page at ``path`` as the newest one, atomically; the first one is kept."""
    kept = _first_of(path)
    first = _section(snapshot, "first") if kept is None else kept
    newest = "" if kept is None else _section(snapshot, "newest")
    page = TEMPLATE.read_text(encoding="utf-8").replace(FIRST, f"{FIRST}\n{first}", 1)
    write_aside(path, page.replace(NEWEST, f"{NEWEST}\n{newest}", 1))


def _first_of(path: Path) -> str | None:
    """The first snapshot's HTML on the page at ``path``; None if there is no such page."""
    if not path.exists():
        return None
    found = re.search(f"{FIRST}\n(.*?){NEWEST}", path.read_text(encoding="utf-8"), re.DOTALL)
    return found.group(1).rstrip("\n") + "\n" if found else None


def _section(snapshot: Snapshot, name: str) -> str:
    label = f"after {snapshot.updates} updates" if snapshot.updates else "before training"
    about = f"{snapshot.algorithm}, {label} ({snapshot.texts:,} texts), price of a nat {snapshot.beta:.4g} reward units"
    articles = "\n".join(_article(number, table) for number, table in enumerate(snapshot.tables, 1))
    return (
        f'<section id="{name}" data-label="{html.escape(label)}">\n<p class="soft">{html.escape(about)}</p>\n'
        f"{articles}\n</section>\n"
    )


def _article(number: int, table: TokenTable) -> str:
    tokens = "".join(_token(token) for token in table.tokens)
    facts = [f"text {number}"]
    if table.score is not None:
        facts.append(f"score <b>{_number(table.score)}</b> reward units")
    if "kl" in table.columns:
        facts.append(f"KL <b>{_number(table.total('kl'))}</b> nats")
    facts.append(f"rewards together <b>{_number(table.total('reward'))}</b>")
    facts += [f"<b>{len(table.tokens)}</b> tokens", STOPPED.get(table.stop_reason, html.escape(table.stop_reason))]
    listed = "".join(f"<span>{fact}</span>" for fact in facts)
    return (
        f'<article>\n<p class="facts">{listed}</p>\n'
        f'<div class="text"><span class="prompt">{_visible(table.prompt)}</span>{tokens}</div>\n'
        f"<details><summary>all numbers</summary>{_table(table)}</details>\n</article>"
    )


def _token(text: str) -> str:
    begins_word = text.startswith(" ") and not text.isspace()
    css_class, shown = ("token word", text[1:]) if begins_word else ("token", text)
    return f'<span class="{css_class}" tabindex="0">{_visible(shown)}</span>'


def _table(table: TokenTable) -> str:
    heads = "".join(_head(name) for name in table.columns)
    columns = [
        [f'<td data-name="{name}" data-value="{value:.6g}">{_number(value, 4)}</td>' for value in values]
        for name, values in table.columns.items()
    ]
    rows = zip(table.tokens, *columns, strict=True)
    body = "\n".join(f"<tr><td>{_visible(token)}</td>{''.join(cells)}</tr>" for token, *cells in rows)
    summed = ("logprob", "ref_logprob", "kl", "reward")
    sums = "".join(f"<td>{_number(table.total(name), 4) if name in summed else ''}</td>" for name in table.columns)
    return (
        f'<div class="scroll"><table>\n<thead><tr><th>token</th>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        f"<tfoot><tr><th>sum</th>{sums}</tr></tfoot>\n</table></div>"
    )


def _head(name: str) -> str:
    label, unit, meaning = map(html.escape, QUANTITIES[name])
    return (
        f'<th data-name="{name}" data-label="{label}" data-unit="{unit}" title="{meaning}">'
        f"{label}<small>{unit}</small></th>"
    )


def _number(value: float, digits: int = 3) -> str:
    """Rounded, without the sign of -0."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _visible(text: str) -> str:
    """Escaped, with visible line ends, and a dot for a token of white space only."""
    shown = text.replace("\n", "⏎")
    return html.escape("·" if text and not shown.strip() else shown)
