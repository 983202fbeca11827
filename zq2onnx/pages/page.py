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
    """A number with so many decimals where these show two digits of it, else in powers of ten; "–" for none.

    >>> number(20.12345), number(1.5e7), number(0.000012, 5), number(float("inf")), number(None)
    ('20.123', '1.50e+07', '1.2e−05', '∞', '–')
    """
    if value is not None and 0 < abs(value) < 10.0 ** (1 - decimals):
        return f"{value:.1e}".replace("-", "−")
    return _fixed(value, decimals)


def _fixed(value: float | None, decimals: int) -> str:
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{decimals}f}" if abs(value) < 1e5 else f"{value:.2e}"
    return text.replace("-", "−")


def gap_text(value: float) -> str:
    """A difference in perplexity, with its sign; what is less than a thousandth is as good as none.

    >>> gap_text(0.1234), gap_text(-0.05), gap_text(-2e-5), gap_text(float("nan"))
    ('+0.123', '−0.050', '±0.000', 'not a number')
    """
    if abs(value) < 5e-4:
        return "±0.000"
    return _fixed(value, 3) if math.isnan(value) or value < 0 else f"+{_fixed(value, 3)}"


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
    return _fixed(100 * share, 2)


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
