"""Write the results of a comparison as JSON, CSV, LaTeX and an HTML report."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from antigram.pipeline.storage.durable import write_text
from antigram.pipeline.table import plain_cell
from antigram.studies.compare.page import study_page
from antigram.studies.compare.texts import COLUMNS, Fields, arm_row, ends, points
from antigram.studies.report import Part, write_page

__all__ = ["write_tables"]

_CLAIM_COLUMNS = (
    *("claim", "setting", "text", "arm", "over", "difference", "95 %", "p"),
    *("p (Holm)", "holds", "note"),
)
_CLAIM_FORM = "llp{5cm}llrrrrlp{4cm}"  # of the columns in LaTeX; texts are broken into lines
_NUMBERS = re.compile(r"[+-]?[\d.]+( to [+-]?[\d.]+)?|-")
_SPECIAL = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    }
)


def write_tables(
    folder: Path,
    content: Fields,
    commands: Sequence[tuple[str, float]],
    curves: Mapping[str, Sequence[Fields]] | None = None,
    more: Mapping[str, Sequence[Part]] | None = None,
) -> None:
    """Write results.json, results.csv, results.tex and report.html; with claims claims.csv, too.

    Args:
        folder: folder of the study.
        content: answer of the study.
        commands: command line of each job, and the seconds that it took.
        curves: name of a training -> the entries of its metrics.jsonl.
        more: setting -> further parts of the report; see `networks.network_parts`.
    """
    write_text(folder / "results.json", json.dumps(content, indent=1) + "\n")
    rows = [[arm["setting"], *arm_row(arm)] for arm in content["arms"]]
    columns = ["setting", *COLUMNS]
    if not any(row[0] for row in rows):
        columns, rows = columns[1:], [row[1:] for row in rows]
    _write_table(folder / "results", [columns, *rows], f"l{'r' * (len(columns) - 1)}")
    claims = [row for claim in content["claims"] for row in _claim_rows(claim)]
    if claims:
        _write_table(folder / "claims", [_CLAIM_COLUMNS, *claims], _CLAIM_FORM)
    else:  # of an earlier declaration of the study
        for kind in ("csv", "tex"):
            (folder / f"claims.{kind}").unlink(missing_ok=True)
    write_page(folder / "report.html", study_page(content, commands, curves or {}, more or {}))


def _claim_rows(claim: Fields) -> list[list[str]]:
    """Return a row for each arm that the claim's arm must beat; for none if none was run."""
    end = [f"{claim['p_holm']:.3f}", "yes" if claim["holds"] else "no", claim["note"] or "-"]
    begin = [claim["name"], claim["setting"] or "-", claim["text"], claim["arm"]]
    return [
        [
            *begin,
            other,
            points(one["mean"], signed=True),
            ends(one, signed=True),
            f"{one['p']:.3f}",
            *end,
        ]
        for other, one in claim["differences"].items()
    ] or [[*begin, "-", "-", "-", "-", *end]]


def _write_table(path: Path, rows: Sequence[Sequence[str]], form: str) -> None:
    """Write a table to PATH.csv and PATH.tex.

    Args:
        path: both files without their endings.
        rows: the headings, then the rows.
        form: argument of LaTeX's ``tabular``, which aligns the columns.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_cell(cell) for cell in row] for row in rows)
    write_text(path.with_suffix(".csv"), text.getvalue())
    body = "".join(" & ".join(cell.translate(_SPECIAL) for cell in row) + " \\\\\n" for row in rows)
    write_text(path.with_suffix(".tex"), f"\\begin{{tabular}}{{{form}}}\n{body}\\end{{tabular}}\n")


def _cell(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; numbers and intervals stay."""
    return cell if _NUMBERS.fullmatch(cell) else str(plain_cell(cell))
