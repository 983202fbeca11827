"""What calibrated methods leave of round-to-nearest's divergence (mean KL) on the trained OPT.

    python benchmarks/calibrated.py                  the whole table: the better part of an hour
    python benchmarks/calibrated.py --column "W3 row" --row GPTQ --row "GPTQ + exact 8" --windows 20

Calibrated on 128 windows of 256 tokens of ../shared/data/calibration.txt; measured on 80 windows of 256
tokens of each of the three texts (the first 400,000 characters). `model` is the objective that weighs errors
by gradients, and needs torch. Cells that stand in --folder from an earlier run are not converted again. Exits
with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import zoo
from tests.acceptance.calibrated import (
    BARS,
    BRANCH_BARS,
    COLUMNS,
    ROWS,
    Divergence,
    convert_cell,
    convert_rtn,
    divergences,
)
from tests.acceptance.perplexity import WINDOWS, write_texts

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def measure(
    model: Path, columns: list[str], rows: list[str], folder: Path, windows: int
) -> dict[str, dict[str, Divergence]]:
    """Divergences by column and row, "RTN" included."""
    texts = write_texts(DATA, folder / "texts")
    table = {}
    for column in columns:
        stem = column.replace(" ", "-")
        paths = {"RTN": convert_rtn(model, folder / f"{stem}-RTN.onnx", column)}
        for row in rows:
            started = time.monotonic()
            path = folder / f"{stem}-{row.replace(' ', '')}.onnx"
            paths[row] = convert_cell(model, DATA / "calibration.txt", path, column, ROWS[row])
            print(f"# {column} {row}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        found = divergences(model, paths.values(), texts, windows)
        table[column] = {row: found[path] for row, path in paths.items()}
    return table


def missed(column: str, row: str, cells: dict[str, Divergence]) -> bool:
    """Whether a cell is over its bar, or its branch pays too little."""
    bar = BARS[row][list(COLUMNS).index(column)] if row in BARS else 1.0
    over = cells[row].kl > bar * cells["RTN"].kl
    if row in BRANCH_BARS and "GPTQ" in cells:
        over |= cells[row].kl > BRANCH_BARS[row] * cells["GPTQ"].kl
    return over


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--column", action="append", choices=list(COLUMNS), help="repeatable")
    parser.add_argument("--row", action="append", choices=list(ROWS), help="repeatable")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of each text")
    parser.add_argument("--folder", type=Path, help="where converted models are kept")
    parser.add_argument(
        "--model", type=Path, help="another model, its tokenizer beside it; bars are the OPT's"
    )
    given = parser.parse_args()
    model = given.model or zoo.model("opt-17m")
    columns, rows = given.column or list(COLUMNS), given.row or list(ROWS)
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        table = measure(model, columns, rows, folder, given.windows)
    print("".join([f"{'':24}", *(f"{column:>20}" for column in columns)]))
    rtn = [f"{table[column]['RTN'].kl:12.5f} {table[column]['RTN'].gap:+7.3f}" for column in columns]
    print("".join([f"{'RTN: KL, gap':24}", *rtn]))
    bad = 0
    for row in rows:
        line = [f"{row:24}"]
        for column in columns:
            cells = table[column]
            off = missed(column, row, cells)
            bad += off
            mark = "!" if off else " "
            line.append(f"{cells[row].kl / cells['RTN'].kl:11.4f}{mark} {cells[row].gap:+7.3f}")
        print("".join(line))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
