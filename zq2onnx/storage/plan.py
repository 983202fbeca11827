"""Where every output tensor lies in the external-data file, known before any is computed."""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = 4096
PAGE_THRESHOLD = 1 << 20
ALIGNMENT = 64
"""Tensors of a MiB and more start on a page, so that they can be mapped; others on a cache line."""


@dataclass(frozen=True)
class Region:
    """A tensor's place in its file, in bytes."""

    offset: int
    length: int


@dataclass
class Section:
    """A file, or a part of one, filled from the front.

    >>> section = Section()
    >>> section.place("a", 10), section.place("b", 4)
    (Region(offset=0, length=10), Region(offset=64, length=4))
    >>> section.size
    68
    """

    regions: dict[str, Region] = field(default_factory=dict)
    size: int = 0

    def place(self, name: str, length: int) -> Region:
        """Reserve the next free region.

        Raises:
            ValueError: the name has a region already.
        """
        if name in self.regions:
            raise ValueError(f"{name!r} is placed twice")
        alignment = PAGE if length >= PAGE_THRESHOLD else ALIGNMENT
        offset = -(-self.size // alignment) * alignment
        region = self.regions[name] = Region(offset, length)
        self.size = offset + length
        return region
