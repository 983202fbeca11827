"""Run passes, and write the graph after each where that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from zq2onnx.passes.dump import dump


@dataclass
class Dumps:
    """Runs passes and, with a folder, writes the graph after each."""

    folder: Path | None
    count: int = 0

    def run(self, passes: Sequence[ir.passes.PassBase], model: ir.Model) -> None:
        """Run the passes in order."""
        for step in passes:
            step(model)
            if self.folder is not None:
                self.folder.mkdir(exist_ok=True)
                dump(model, self.folder, self.count, type(step).__name__)
            self.count += 1
