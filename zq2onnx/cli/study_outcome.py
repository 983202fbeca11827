"""What `study` prints when it is done, and the page it needs a renderer for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from zq2onnx.cli import console
from zq2onnx.errors import UserError

if TYPE_CHECKING:
    from zq2onnx.study import Study


_PAGE_NEEDS = ("jinja2", "markupsafe", "matplotlib")
"""Packages of the `report` extra, by their modules' names."""


def page_renderer() -> Callable[[Study], str]:
    """What makes the page; asked for first, so that what it needs is not found missing after an hour."""
    try:
        from zq2onnx.pages.study_report import render
    except ModuleNotFoundError as error:
        if error.name not in _PAGE_NEEDS:
            raise
        raise UserError(
            f"{error.name} is not installed; study.html needs it",
            remedy='pip install "zq2onnx[report]", or leave the page out with --no-html',
        ) from None
    return render


def print_study(result: Study, folder: Path, html: bool) -> None:
    """The table, the recommendation, and where to read more."""
    from rich.table import Table

    from zq2onnx.evaluation.results import kl_text
    from zq2onnx.study.recommendation import commands, sentences
    from zq2onnx.study.results import CellResult
    from zq2onnx.study.table import table

    for warning in result.warnings:
        console.stderr.print(f"warning: {warning}")
    laid_out = table(result)
    shown = Table("method", "groups", "rank", *laid_out.schemes, title="perplexity gap, class, KL, MB")
    for row in laid_out.rows:
        entries = (
            f"{entry.gap:+.3f} {entry.paper_class.value} {kl_text(entry.kl)} {entry.bytes / 1e6:.2f}"
            if isinstance(entry, CellResult)
            else ("failed" if entry else "")
            for entry in row.entries
        )
        shown.add_row(row.method, row.group_size, str(row.lorc_rank), *entries)
    console.stdout.print(shown)
    for sentence in sentences(result):
        console.stdout.print(sentence)
    for _, line in commands(result):
        console.stdout.print(f"  {line}")
    kinds = ("md", "csv", "json", "html") if html else ("md", "csv", "json")
    console.stdout.print(f"written: {', '.join(str(folder / f'study.{kind}') for kind in kinds)}")


def refuse_failures(result: Study, folder: Path) -> None:
    """Exit with 2 where a cell gave no result, when all that is known is written.

    Raises:
        UserError: a cell gave none.
    """
    if not result.failures:
        return
    first, count = result.failures[0], len(result.failures)
    raise UserError(
        f"{count} of {count + len(result.cells)} cells gave no result, the first: {first.cell.label}:"
        f" {first.reason}",
        remedy=f"{folder / 'study.md'} has every reason; the same command tries them again",
    )
