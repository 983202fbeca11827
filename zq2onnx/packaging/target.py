"""The serving stacks that a folder can be made for."""

from __future__ import annotations

import enum


class Target(enum.StrEnum):
    """What opens the folder."""

    GENAI = "genai"
    TRITON = "triton"
    ORT = "ort"
