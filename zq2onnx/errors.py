"""The exceptions of zq2onnx. The command line turns each into one line and an exit code."""

from __future__ import annotations


class Zq2onnxError(Exception):
    """Root of every exception this package raises on purpose."""

    exit_code = 1


class UserError(Zq2onnxError):
    """Something the user can mend: prints as `found; required: ..; remedy` and exits with 2.

    Args:
        found: what was met, with the file, the node's name and the numbers.
        required: what is needed instead; "" where `found` says it.
        remedy: what to do about it; "" where nothing but the obvious helps.
    """

    exit_code = 2

    def __init__(self, found: str, required: str = "", remedy: str = "") -> None:
        parts = (found, f"required: {required}" if required else "", remedy)
        super().__init__("; ".join(part for part in parts if part))
        self.found = found
        self.required = required
        self.remedy = remedy


class CheckFailed(Zq2onnxError):
    """zq2onnx's own check of what it wrote did not hold: exits with 1, deletes nothing."""
