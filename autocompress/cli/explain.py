"""`autocompress explain`: the concept pages, which lie beside the code that they are about."""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated

import typer

from autocompress.cli.app import app
from autocompress.cli.show import console
from autocompress.errors import SettingsError

# Rooms with a page, as people read them; those of the methods follow.
_WORDS, _USE = "Words", "autocompress explain knee"
_PAGES = ("engine", "task", "measure", "report", "graph", "checkpoint", "methods")


@app.command(
    context_settings={"ignore_unknown_options": True},  # an option is a subject as well
    epilog="""\b
Examples:
  autocompress explain
  autocompress explain knee
  autocompress explain early-stopping
  autocompress explain alcn
""",
)
def explain(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="TERM", help="A subject; without it, all are listed.")
    ] = None,
) -> None:
    """Explain a subject: how a search works, what a number means, a method."""
    subjects = _subjects()
    if not words:
        print("\n".join(_listed(subjects)))
        return
    term = " ".join(words)
    wanted = _key(term)
    if not wanted:
        raise SettingsError(
            f"TERM must be a subject, as in `{_USE}`, but is empty; without it, all are listed."
        )
    keys = {_key(name): text for page in subjects.values() for name, text in page.items()}
    text = next((keys[key] for key in _spellings(wanted) if key in keys), None)
    if text is None:
        raise SettingsError(
            f"TERM must be a subject of the pages but got {term!r}; {_nearest(wanted, keys)}."
        )
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        console().print(Markdown(text))
    else:
        print(text)


def _spellings(wanted: str) -> list[str]:
    """A key, and it without an article, an option's dashes and the ending of a plural, or with one."""
    bare = wanted.removeprefix("the-").strip("-")
    return [wanted, bare, bare.removesuffix("s"), f"{bare}s"]


def _nearest(wanted: str, keys: Mapping[str, str]) -> str:
    """Which subjects are called alike, or tell of the word."""
    near = difflib.get_close_matches(wanted, keys, 3, cutoff=0.6)
    near += [key for key in keys if wanted in key and key not in near]
    if near:
        return f"the nearest are {', '.join(near)}"
    word = wanted.replace("-", " ")
    told = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
    telling = [key for key, text in keys.items() if told.search(text)]
    return f"it stands under {', '.join(telling[:5])}" if telling else "without a TERM all are listed"


def _subjects() -> dict[str, dict[str, str]]:
    """Page → subject → its text: sections of pages, methods as a whole, and words by all their names."""
    package = files("autocompress")
    pages: dict[str, dict[str, str]] = {}
    for room in _PAGES:
        title, *sections = _sections(package / room / "README.md")
        pages[_title(title)] = {text.partition("\n")[0]: f"## {text}" for text in sections}
    pages["Methods"] = {room.name: (room / "README.md").read_text() for room in _methods(package)}
    title, *entries = _sections(package / "report" / "glossary.md")
    words: dict[str, str] = {}
    for entry in entries:
        for name in entry.partition("\n")[0].split(", "):
            words[name] = f"## {entry.strip()}"
    # Sections of the pages say more than a word's few sentences do.
    known = {_key(name) for page in pages.values() for name in page}
    pages[_title(title)] = {name: text for name, text in words.items() if _key(name) not in known}
    return pages


def _sections(page: Traversable) -> list[str]:
    return re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def _methods(package: Traversable) -> list[Traversable]:
    rooms = sorted((package / "methods").iterdir(), key=lambda room: room.name)
    return [room for room in rooms if room.is_dir() and (room / "README.md").is_file()]


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def _listed(subjects: dict[str, dict[str, str]]) -> list[str]:
    lines = []
    for page, names in subjects.items():
        lines.append(f"{page}:")
        if page != _WORDS:
            lines += [f"  {_key(name)}" for name in names]
            continue
        listed = ", ".join(sorted(map(_key, names)))
        lines += textwrap.wrap(
            listed, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
    return lines


def _key(name: str) -> str:
    """What people type for a heading."""
    return re.sub(r"[\s_`]+", "-", name.strip("\"'`“” \t\n").lower())
