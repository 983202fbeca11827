"""The progress bars of work in several steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from zq2onnx.cli import console


class Bars:
    """One progress bar after the other; each appears with its first work, when the total is known."""

    def __init__(self, stack: contextlib.ExitStack, quiet: bool) -> None:
        self.stack = stack
        self.quiet = quiet
        self.shown = ""
        self.counted = 0
        self.in_blocks = False
        self.advance: Callable[[float], None] | None = None

    def quantizing(self, done: int, total: int) -> None:
        """So many parameters more are done."""
        if self.in_blocks:
            return
        self._show("quantizing", total, "params")(done)

    def calibrating(self, done: int, total: int) -> None:
        """So many blocks are calibrated; from now on weights are counted in blocks."""
        self.in_blocks = True
        self._count("calibrating", done, total, "blocks")

    def gathering(self, done: int, total: int) -> None:
        """So many steps of the pass that gathers gradients are done."""
        self._count("gathering gradients", done, total, "steps")

    def sizing_up(self, done: int, total: int) -> None:
        """So many layers are quantized in every way."""
        self._count("sizing up", done, total, "layers")

    def measuring(self, done: int, total: int) -> None:
        """So many pieces of the model are run with one layer changed at a time."""
        self._count("measuring", done, total, "pieces")

    def checking(self, done: int, total: int) -> None:
        """So many nodes are checked."""
        self._count("checking", done, total, "nodes")

    def _count(self, description: str, done: int, total: int, unit: str) -> None:
        """Let a bar stand at `done`."""
        before = self.counted if self.shown == description else 0
        self._show(description, total, unit)(done - before)
        self.counted = done

    def _show(self, description: str, total: int, unit: str) -> Callable[[float], None]:
        if self.advance is None or self.shown != description:
            self.stack.close()  # a terminal shows one at a time
            self.advance = self.stack.enter_context(
                console.progress(description, total, quiet=self.quiet, unit=unit)
            )
            self.shown = description
        return self.advance
