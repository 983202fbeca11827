"""Self-contained HTML pages: they open offline, print well, and fit a phone and a dark theme.

`study_report.render` and `evaluation_card.render` return a whole page as a string. They need the
`[report]` extra; `require_libraries` says so in one line, before any costly work.
"""

from __future__ import annotations

import importlib

from zq2onnx.errors import UserError

__all__ = ["require_libraries"]

_LIBRARIES = ("jinja2", "matplotlib")


def require_libraries() -> None:
    """Find out whether pages can be made.

    Raises:
        UserError: jinja2 or matplotlib is not installed.
    """
    for name in _LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"an HTML page needs {name}", remedy="pip install 'zq2onnx[report]'") from None
