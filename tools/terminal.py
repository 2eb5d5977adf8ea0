"""Where results are printed: tables that stay whole in a terminal, in a pipe and in a file."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 200  # columns where standard output is no terminal, whatever COLUMNS says: a file is not as narrow as a window


def results_console() -> Console:
    """The console for standard output."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def print_results(results: Iterable[RenderableType]) -> None:
    """Print tables and texts to standard output, an empty line between them."""
    console = results_console()
    for place, result in enumerate(results):
        if place:
            console.print()
        console.print(result)


def compact_table(title: str | Text) -> Table:
    """An empty table that spends no columns on edges."""
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True
    )
