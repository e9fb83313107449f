"""The templates' environment, and how values stand in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jinja2

from autocompress.report.notes import code, plain

FOLDER = Path(__file__).parent


@cache
def environment() -> jinja2.Environment:
    """Templates by name. Those of HTML escape what users call things; for Markdown there are `plain` and
    `code`."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"plain": plain, "code": code}
    return made


def shortened(value: object, most: int = 60) -> str:
    """A setting's value on a line."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= most else f"{text[:most]}…"
