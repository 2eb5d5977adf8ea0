"""Progress bars for long work. A bar goes to the terminal's standard error; results go to standard output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


class Advance(Protocol):
    """What the body of a progress bar calls after each finished part."""

    def __call__(self, parts: int = 1, /) -> None: ...


def announce(text: str) -> None:
    """Say on standard error what begins, where no terminal shows a bar: a log of hours then says where it stands."""
    console = Console(stderr=True, soft_wrap=True)
    if not console.is_terminal:
        console.print(text, markup=False, highlight=False)


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Advance]:
    """Show one bar while the block runs; `total` None means the amount of work is unknown."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)

        def advance(parts: int = 1, /) -> None:
            progress.advance(task, parts)

        yield advance


def tracked(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar; `total` defaults to the length of `items` where it has one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(label, total) as advance:
        for item in items:
            yield item
            advance()
