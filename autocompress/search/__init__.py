"""`search`: ask, run, tell until the budget ends; `load_run`: the result of an earlier search."""

from autocompress.search.compress import Compressed, compress
from autocompress.search.prepare import prepare
from autocompress.search.replay import replay
from autocompress.search.results import load_run, report
from autocompress.search.run import search
from autocompress.search.settings import Settings

__all__ = [
    "Compressed",
    "Settings",
    "compress",
    "load_run",
    "prepare",
    "replay",
    "report",
    "search",
]
