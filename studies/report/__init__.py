"""HTML reports and curves of runs.

``page`` writes a report with the template ``page.html``, ``curves`` draws the curves of runs,
``differences`` draws accuracies of arms and differences between them, ``run`` makes the report of
one run, and ``segments`` makes the parts of that report which show single segments.
"""

from antigram.studies.report.curves import Curves, draw_curves
from antigram.studies.report.differences import draw_by_arm, draw_by_number, draw_probes
from antigram.studies.report.page import (
    Confusion,
    Figure,
    Fold,
    Page,
    Part,
    Picture,
    Sound,
    Sounds,
    Table,
    page_html,
    write_page,
)
from antigram.studies.report.run import draw_run, read_metrics, write_run_report

__all__ = [
    "Confusion",
    "Curves",
    "Figure",
    "Fold",
    "Page",
    "Part",
    "Picture",
    "Sound",
    "Sounds",
    "Table",
    "draw_by_arm",
    "draw_by_number",
    "draw_curves",
    "draw_probes",
    "draw_run",
    "page_html",
    "read_metrics",
    "write_page",
    "write_run_report",
]
