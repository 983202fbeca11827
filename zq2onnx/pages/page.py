"""The frame of every page: its templates, its style sheet, and how numbers are written."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any

import jinja2

import zq2onnx
from zq2onnx.evaluation.paper_class import PaperClass


def render_template(name: str, **values: Any) -> str:
    """Fill in a template of this package; every value is escaped, and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("zq2onnx.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        gap=gap_text, megabytes=megabytes, name=file_name, number=number, percent=percent, tone=tone
    )
    return environment.get_template(name).render(version=zq2onnx.__version__, **values)


def number(value: float | None, decimals: int = 3) -> str:
    """A number with so many decimals where that can be read, else in powers of ten; "–" for none.

    >>> number(20.12345), number(1.5e7), number(0.000012, 5), number(float("inf")), number(None)
    ('20.123', '1.50e+07', '0.00001', '∞', '–')
    """
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{decimals}f}" if abs(value) < 1e5 else f"{value:.2e}"
    return text.replace("-", "−")


def gap_text(value: float) -> str:
    """A difference in perplexity, with its sign.

    >>> gap_text(0.1234), gap_text(-0.05), gap_text(float("nan"))
    ('+0.123', '−0.050', 'not a number')
    """
    return number(value) if math.isnan(value) or value < 0 else f"+{number(value)}"


def megabytes(size: int) -> str:
    """A size in millions of bytes.

    >>> megabytes(12_345_678)
    '12.35'
    """
    return f"{size / 1e6:.2f}"


def percent(share: float) -> str:
    """A share, 0 to 1, in percent.

    >>> percent(0.98765)
    '98.77'
    """
    return number(100 * share, 2)


def file_name(path: str) -> str:
    """The last part of a path.

    >>> file_name("models/opt/model.onnx")
    'model.onnx'
    """
    return PurePath(path).name or path


def tone(paper_class: PaperClass) -> str:
    """The style sheet's name for a class.

    >>> tone(PaperClass.CLASS_2)
    'class-2'
    """
    return paper_class.value.lower()
