"""How far a study is, told while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A moment of a study.

    Attributes:
        doing: what, such as `w3a16 g64 gptq rank 8: calibrating`.
        done: how much of it.
        total: how much it is.
        unit: what is counted.
        finished: cells that have their result.
        cells: of the grid.
    """

    doing: str
    done: float
    total: float
    unit: str
    finished: int
    cells: int


Progress = Callable[[Step], None]


@dataclass
class Teller:
    """Tells of one piece of work after the other.

    Attributes:
        progress: who is told.
        cells: of the grid.
        finished: how many have their result.
        subject: whose turn it is.
    """

    progress: Progress | None
    cells: int
    finished: int = 0
    subject: str = ""

    def counter(self, doing: str, unit: str) -> Callable[[float, float], None]:
        """What is to be called with how much is done, and of how much."""

        def tell(done: float, total: float) -> None:
            if self.progress is not None:
                what = f"{self.subject}: {doing}"
                self.progress(Step(what, done, total, unit, self.finished, self.cells))

        return tell

    def adder(self, doing: str, unit: str, total: float) -> Callable[[float], None]:
        """What is to be called with how much was done since the last call."""
        tell, done = self.counter(doing, unit), 0.0

        def add(amount: float) -> None:
            nonlocal done
            done += amount
            tell(done, total)

        return add
