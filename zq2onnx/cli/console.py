"""What the commands print with: results on stdout, messages and progress on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.filesize import decimal, pick_unit_and_suffix
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_PIPED_WIDTH = 1000
"""Columns where there is no terminal: no table is cut, and no line broken, for a file or a pipe."""


def _console(to_stderr: bool) -> Console:
    """A console that prints what it is given: no markup, since `[` and `]` occur in file names."""
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    return Console(
        stderr=to_stderr,
        width=None if terminal else _PIPED_WIDTH,
        soft_wrap=True,
        markup=False,
        emoji=False,
        highlight=False,
    )


stdout = _console(to_stderr=False)
stderr = _console(to_stderr=True)


def _quantity(amount: float, unit: str) -> str:
    """An amount with its unit.

    >>> _quantity(12_300_000, "params"), _quantity(7, "windows"), _quantity(1_500_000, "B")
    ('12.3 M params', '7 windows', '1.5 MB')
    """
    if unit == "B":
        return decimal(int(amount))
    base, suffix = pick_unit_and_suffix(int(amount), ["", " k", " M", " G", " T"], 1000)
    number = f"{amount / base:.1f}" if suffix else f"{amount:.0f}"
    return f"{number}{suffix}{' ' if unit else ''}{unit}"


class _RateColumn(ProgressColumn):
    """Work done, and work done per second."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields["unit"])
        done = _quantity(task.completed, unit)
        speed = task.finished_speed or task.speed
        return Text(f"{done}  {_quantity(speed, unit)}/s" if speed else done)


@contextlib.contextmanager
def progress(
    description: str, total: float | None, quiet: bool = False, unit: str = ""
) -> Iterator[Callable[[float], None]]:
    """Show how far a piece of work is: a bar on stderr, only where that is a terminal.

    Args:
        description: what is being done.
        total: the whole amount; None where it is not known.
        quiet: show nothing.
        unit: what is counted: `params`, `windows`; `B` for bytes.

    Yields:
        `advance(amount)`, to be called with each piece done; from any thread.
    """
    if quiet or not stderr.is_interactive:
        yield lambda amount: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _RateColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(description, total=total, unit=unit)
        yield lambda amount: bar.advance(task, amount)
