"""The classes in which ZeroQuant-V2 sorts what a quantization costs (section 3)."""

from __future__ import annotations

import enum


class PaperClass(enum.Enum):
    """How far a quantized model's perplexity is above the float one's."""

    CLASS_1 = "Class-1"
    """At most 0.1 above."""
    CLASS_2 = "Class-2"
    """At most 0.5 above."""
    CLASS_3 = "Class-3"
    """More, or not a number."""

    @property
    def bound(self) -> float:
        """The greatest gap that is of this class."""
        return _BOUNDS[self]

    @classmethod
    def of(cls, gap: float) -> PaperClass:
        """The class of a perplexity's gap to the float model's.

        >>> PaperClass.of(0.1).value, PaperClass.of(-0.2).value, PaperClass.of(float("nan")).value
        ('Class-1', 'Class-1', 'Class-3')
        """
        return next((member for member in cls if gap <= member.bound), cls.CLASS_3)

    def describe(self) -> str:
        """The class and what it means.

        >>> PaperClass.CLASS_2.describe()
        'Class-2: at most 0.5 above the float model'
        """
        if self is PaperClass.CLASS_3:
            return f"{self.value}: more than {PaperClass.CLASS_2.bound} above the float model"
        return f"{self.value}: at most {self.bound} above the float model"


_BOUNDS = {PaperClass.CLASS_1: 0.1, PaperClass.CLASS_2: 0.5, PaperClass.CLASS_3: float("inf")}
