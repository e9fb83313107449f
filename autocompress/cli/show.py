"""What commands print."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from autocompress.errors import SettingsError


def print_result(result: Any, quiet: bool = False, json_lines: bool = False) -> None:
    """Print the front of a finished search, where its files are and what to do next.

    Args:
        result: of the search.
        quiet: print the front alone.
        json_lines: print it as one line of JSON, under "event" that it is the result.
    """
    if json_lines:
        print(json.dumps({"event": "result", **result.to_json(), "disk_bytes": result.disk_bytes}))
        return
    point = print_front(result)
    if quiet:
        return
    from autocompress.report import disk_text

    print(f"checkpoints  {result.out / 'trials'}: {disk_text(result)}")
    print(f"report       {result.out / 'report.html'}")
    if result.address is not None:
        print(f"store        {result.address}, of which these are a copy")
    if point is not None:
        run = shlex.quote(result.shown)
        print(f"next         autocompress pick {run} --max-drop 0.01")
        rule = "knee" if answer_to_target(result) is None else "target"
        name = point.artifact.name
        print(f"             autocompress export {run} --pick {rule} -o {name}")
        print(f"             autocompress dashboard {run}")


def print_front(result: Any, mark: Any = None, label: str = "knee") -> Any:
    """Print the table of a front, how certain its marked point is and which trials are within noise of it.

    Args:
        result: of a search.
        mark: the point to mark; None marks what answers the search's target, or else the knee.
        label: what the table calls the marked point.

    Returns:
        The point that is marked; None where no compressed model is on the front.
    """
    from autocompress.report import certainty_text, front_table, target_text

    point, answer = mark, answer_to_target(result)
    if mark is None:
        point, label = result.marked
    terminal = console()
    print_table(front_table(result, point, label, terminal.width if terminal.is_terminal else None))
    if result.target is not None:
        print(target_text(result, answer))
    if point is None:
        print(result.why_none)
    elif point.trial != 0:
        print(f"trial {point.trial}: {certainty_text(result, point)}")
    if result.contenders:
        near = ", ".join(f"{p.trial} ({p.front_probability:.0%})" for p in result.contenders)
        print(f"within noise of the front: trials {near}")
    return point


def answer_to_target(result: Any) -> Any:
    """The point that answers the search's target; None where there is no target, or no such point."""
    try:
        return result.pick("target")
    except SettingsError:
        return None


def print_table(table: Any) -> None:
    """Print what Rich lays out; into a pipe, which has no width, whole and without trailing blanks."""
    from autocompress.tables import plain_text

    terminal = console()
    if terminal.is_terminal:
        terminal.print(table)
    else:
        print(plain_text(table))


def console() -> Any:
    """Open a console on standard output."""
    from rich.console import Console

    return Console()


def print_error(text: str) -> None:
    """Print one line on standard error, after the program's name."""
    print(f"autocompress: {text}", file=sys.stderr)
