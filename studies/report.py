"""A self-contained HTML page of some runs: table, curves of task and AT loss. No scripts."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure

from antigram.pipeline.storage.durable import write_text

__all__ = ["curves_svg", "read_metrics", "report_page", "write_report"]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } caption { text-align: left; font-weight: 600 }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
code { background: #f4f4f4; padding: 0 .2rem } figure { margin: 2rem 0 } svg { max-width: 100% }
</style></head><body>
<h1>{{ title }}</h1>
{% for paragraph in text %}<p>{{ paragraph }}</p>
{% endfor %}
{% for table in tables %}<table><caption>{{ table.caption }}</caption>
<tr>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}
{% for figure in figures %}<figure>{{ figure.svg | safe }}
<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}
</body></html>
"""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Entries of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curves_svg(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Task and AT loss over the epochs, training and validation, one row of plots a run.

    Args:
        runs: name -> entries of its metrics.jsonl.

    Returns:
        An SVG element.

    References:
        Guizzo, Weyde and Tarroni (2021), figure 7.
    """
    with mpl.rc_context({"svg.hashsalt": "antigram", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 2.2 * len(runs)), layout="constrained")
        grid = figure.subplots(len(runs), 2, squeeze=False, sharex=True)
        for (name, entries), axes in zip(runs.items(), grid, strict=True):
            epochs = [entry["epoch"] for entry in entries]
            for axis, key, what in zip(axes, ("ce", "at"), ("task loss", "AT loss"), strict=True):
                for split, style in (("train", "-"), ("validation", "--")):
                    values = [entry[split][key] for entry in entries]
                    axis.plot(epochs, values, style, label=split)
                # Arms without AT have none to show.
                axis.set_visible(key == "ce" or any(entry["train"]["at"] for entry in entries))
                axis.set_title(f"{name}: {what}")
                axis.set_ylim(bottom=0)
                axis.grid(alpha=0.3)
                axis.legend()
        for axis in grid[-1]:
            axis.set_xlabel("epoch")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def write_report(
    path: Path,
    *,
    title: str,
    text: Sequence[str],
    tables: Sequence[Mapping[str, Any]],
    figures: Sequence[Mapping[str, str]],
) -> None:
    """Write the `report_page` of the other arguments to an HTML file."""
    write_text(path, report_page(title=title, text=text, tables=tables, figures=figures))


def report_page(
    *,
    title: str,
    text: Sequence[str],
    tables: Sequence[Mapping[str, Any]],
    figures: Sequence[Mapping[str, str]],
) -> str:
    """The page; all text is escaped, as names of runs and classes are other people's.

    Args:
        title: heading.
        text: paragraphs.
        tables: each with ``caption``, ``columns`` and ``rows``.
        figures: each with ``caption`` and ``svg``.
    """
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    return page.render(title=title, text=text, tables=tables, figures=figures)
