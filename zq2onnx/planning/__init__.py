"""Chooses bits, group size and rank layer by layer: what each costs, and how a budget is best spent."""

from __future__ import annotations
