"""What people look at: the terminal display and tables, plots, and the single-file HTML report."""

from autocompress.report.console import (
    certainty_text,
    disk_text,
    target_text,
)
from autocompress.report.html import write_report
from autocompress.report.live import ConsoleProgress, JsonLinesProgress, NotebookProgress, shown_progress
from autocompress.report.pictures import trial_picture
from autocompress.report.progress import Progress, TrialBegin, TrialEnd
from autocompress.tables import front_table, metric_text

__all__ = [
    "ConsoleProgress",
    "JsonLinesProgress",
    "NotebookProgress",
    "Progress",
    "TrialBegin",
    "TrialEnd",
    "certainty_text",
    "disk_text",
    "front_table",
    "metric_text",
    "shown_progress",
    "target_text",
    "trial_picture",
    "write_report",
]
