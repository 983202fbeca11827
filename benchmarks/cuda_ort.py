"""Times our nodes in ONNX Runtime on a GPU: by the operator library's kernels, and by their functions.

    python benchmarks/cuda_ort.py                  all of it, some five minutes
    python benchmarks/cuda_ort.py --operator W4A16LoRC --group 128 --shape 4096x4096 --tokens 1
    python benchmarks/cuda_ort.py --provider cpu --shape 256x256 --tokens 1    needs no GPU: tries the program

Needs onnxruntime-gpu, a GPU, and compiled kernels for it (`zq2onnx kernels build`).

A row is one operator, group, weight shape (K x N) and number of tokens, in float16. Its model is a chain of
products with weights of their own, together of more than `--cold` bytes, so that the second-level cache holds
none of them; a figure is microseconds for one product, the median over rounds. The forms take turns in each
round, and a ratio is the median over the rounds' ratios:

    fused     the node by the library's kernels
    portable  the node by its function, on ONNX Runtime's own kernels: the same file
    float     a float16 MatMul

each launched kernel by kernel, and as a CUDA graph. Inputs and outputs are bound, on the GPU. Before a row is
timed fused and portable results are compared; those of two runs, and of a replayed graph, must be the same to
the bit. Exits with 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime as ort

from benchmarks.products import FloatMatMul, Kind, OurMatMul, Shape, write_models
from zq2onnx.errors import UserError
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.library import describe, register
from zq2onnx.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER

NAMES = ("W4A16", "W4A16LoRC", "W8A8", "W8A8LoRC", "W4A8", "W4A8LoRC", "W3A16LoRC", "W2A16LoRC")
GROUPS = (32, 128)
SHAPES = ("4096x4096", "4096x11008", "8192x8192")
TOKENS = (1, 16, 512)
RANK = 8
TOLERANCE = 0.02
"""Of a fused result against its function's, by norms: near a middle int8 activations may round otherwise."""

ROUNDS = 15
FUSED, PORTABLE, FLOAT = "fused", "portable", "float"


@dataclass(frozen=True)
class Row:
    """One line of the table: microseconds for one product by form, `graph` as a CUDA graph."""

    operator: str
    group: int
    shape: str
    tokens: int
    error: float
    fused: float
    portable: float
    float: float
    fused_graph: float
    portable_graph: float
    float_graph: float
    against_portable: float
    against_portable_graph: float
    against_float_graph: float


class Form:
    """A session of a chain, whose inputs and outputs are bound where it runs."""

    def __init__(self, path: Path, ops: list[str], provider: str, graph: bool, count: int) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if ops:
            register(options, ops, provider)
        named: dict[str, str] = {"enable_cuda_graph": "1"} if graph else {}
        wanted = [(CUDA_PROVIDER, named), (CPU_PROVIDER, {})] if provider == "cuda" else [(CPU_PROVIDER, {})]
        self.session = ort.InferenceSession(str(path), options, providers=wanted)
        if self.session.get_providers()[0] != wanted[0][0]:
            raise UserError(f"{wanted[0][0]} cannot be made", "the libraries of CUDA and cuDNN that it needs")
        self.device, self.count = provider, count
        self.binding: Any = None
        self.outputs: list[ort.OrtValue] = []

    def bind(self, a: np.ndarray, n: int) -> None:
        """Let all products read `a`, and warm up: the first runs choose algorithms, one records the graph."""
        self.binding = self.session.io_binding()
        x = ort.OrtValue.ortvalue_from_numpy(a, self.device, 0)
        self.outputs = [
            ort.OrtValue.ortvalue_from_numpy(np.zeros((len(a), n), a.dtype), self.device, 0)
            for _ in range(self.count)
        ]
        for at, output in enumerate(self.outputs):
            self.binding.bind_ortvalue_input(f"A{at}", x)
            self.binding.bind_ortvalue_output(f"Y{at}", output)
        for _ in range(3):
            self.run()

    def run(self) -> None:
        """Run the chain; returns when it has been run."""
        self.session.run_with_iobinding(self.binding)

    def result(self) -> np.ndarray:
        """The last product's."""
        return np.asarray(self.outputs[-1].numpy())

    def time(self) -> float:
        """Microseconds of one product."""
        start = time.perf_counter()
        self.run()
        return 1e6 * (time.perf_counter() - start) / self.count


class Bench:
    """Makes the forms of an operator, and times them."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.provider: str = given.provider
        self.graphs = (False, True) if self.provider == "cuda" else (False,)
        self.cold: int = given.cold
        self.rounds: int = given.rounds

    def rows(self, name: str, shape: Shape, tokens: list[int]) -> Iterator[Row]:
        """A row for each number of tokens. CUDA graphs are of one size: sessions are made anew for each."""
        operator = OPERATORS[f"MatMul{name}"]
        kinds: dict[str, tuple[Kind, list[str]]] = {
            FUSED: (OurMatMul(operator, RANK if operator.lorc else 0), [f"MatMul{name}"]),
            PORTABLE: (OurMatMul(operator, RANK if operator.lorc else 0), []),
            FLOAT: (FloatMatMul(), []),
        }
        stored = {FLOAT: 2 * shape.k * shape.n}
        for count in tokens:
            with tempfile.TemporaryDirectory(prefix="zq2onnx-cuda-ort-") as folder:
                forms = {}
                for form, (kind, ops) in kinds.items():
                    bytes_ = stored.get(form, shape.k * shape.n * operator.bits // 8)
                    products = self.cold // bytes_ + 1
                    place = Path(folder, form)
                    place.mkdir()
                    (path,) = write_models(place, kind, shape, [products], dtype=np.float16)
                    for graph in self.graphs:
                        made = self.form(path, ops, products, graph)
                        if made is not None:
                            forms[form, graph] = made
                yield self.row(name, shape, count, forms)

    def form(self, path: Path, ops: list[str], products: int, graph: bool) -> Form | None:
        """A form; None, which is said, where ONNX Runtime cannot make a CUDA graph of it."""
        try:
            return Form(path, ops, self.provider, graph, products)
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            if not graph:
                raise UserError(f"{path.parent.name}: {str(error).splitlines()[0]}") from error
            print(f"no CUDA graph of {path.parent.name}: {str(error).splitlines()[0]}")
            return None

    def row(self, name: str, shape: Shape, tokens: int, forms: dict[tuple[str, bool], Form]) -> Row:
        """Compare results, then time in turns."""
        a = np.random.default_rng(tokens).standard_normal((tokens, shape.k)).astype(np.float16)
        for form in forms.values():
            form.bind(a, shape.n)
        what = f"{name} in groups of {shape.group}, {shape.k}x{shape.n}, {tokens} tokens"
        error = check(what, forms)
        taken = self.turns(forms)

        def middle(form: str, graph: bool) -> float:
            return float(np.median(taken.get((form, graph), np.nan)))

        def ratio(above: str, graph: bool) -> float:
            found = taken.get((above, graph), np.nan) / taken.get((FUSED, graph), np.array(np.nan))
            return float(np.median(found))

        return Row(
            name, shape.group, f"{shape.k}x{shape.n}", tokens, error,
            *(middle(form, graph) for graph in (False, True) for form in (FUSED, PORTABLE, FLOAT)),
            ratio(PORTABLE, False), ratio(PORTABLE, True), ratio(FLOAT, True),
        )  # fmt: skip

    def turns(self, forms: dict[tuple[str, bool], Form]) -> dict[tuple[str, bool], np.ndarray]:
        """Microseconds by form and round."""
        taken: dict[tuple[str, bool], list[float]] = {key: [] for key in forms}
        keys = list(forms)
        for at in range(self.rounds):
            for key in keys[at % len(keys) :] + keys[: at % len(keys)]:
                taken[key].append(forms[key].time())
        return {key: np.asarray(times) for key, times in taken.items()}


def check(what: str, forms: dict[tuple[str, bool], Form]) -> float:
    """Compare fused with portable results, runs with each other, and a graph with what it was made of.

    Returns:
        How far the first two are apart, by norms.

    Raises:
        SystemExit: with a message and status 1.
    """
    fused, portable = (forms[form, False].result().astype(np.float64) for form in (FUSED, PORTABLE))
    error = float(np.linalg.norm(fused - portable) / np.linalg.norm(portable))
    if not error < TOLERANCE:
        sys.exit(f"error: {what}: the fused result is {error:.2g} off its function's")
    for (form, graph), made in forms.items():
        before = made.result().copy()
        made.run()
        if not np.array_equal(before, made.result()):
            sys.exit(f"error: {what}: two runs differ ({form}{', as a CUDA graph' * graph})")
    graph = forms.get((FUSED, True))
    if graph is not None and not np.array_equal(graph.result(), forms[FUSED, False].result()):
        sys.exit(f"error: {what}: as a CUDA graph it computes something else")
    return error


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several: dict[str, Any] = {"action": "append", "metavar": "X"}
    parser.add_argument("--operator", help=f"default: {', '.join(NAMES)}", **several)
    parser.add_argument("--group", type=int, help=f"default: {GROUPS}", **several)
    parser.add_argument("--shape", help=f"K x N; default: {', '.join(SHAPES)}", **several)
    parser.add_argument("--tokens", type=int, help=f"default: {TOKENS}", **several)
    parser.add_argument("--cold", type=int, default=256 << 20, metavar="BYTES")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def shape_of(text: str, group: int) -> Shape:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise UserError(f"--shape {text}", "K x N, as 4096x11008")
    return Shape(int(found.group(1)), int(found.group(2)), group)


def require_kernels(provider: str, names: list[str]) -> str:
    """What it runs on.

    Raises:
        UserError: the library would not register one of these there.
    """
    if provider == "cuda" and CUDA_PROVIDER not in ort.get_available_providers():
        raise UserError(f"onnxruntime {ort.__version__} has no CUDA provider", "onnxruntime-gpu")
    unknown = [name for name in names if f"MatMul{name}" not in OPERATORS]
    if unknown:
        raise UserError(f"--operator {unknown[0]}", f"of {', '.join(name[6:] for name in OPERATORS)}")
    found = describe("all", provider)
    for choice in found.operators:
        if choice.name.removeprefix("MatMul") in names and not choice.registered:
            raise UserError(f"{choice.name}: {choice.why}", "zq2onnx runtime info to find a kernel for it")
    return found.cuda.gpus[0][0] if found.cuda is not None else "the CPU"


def print_row(row: Row) -> None:
    times = (row.fused, row.portable, row.float, row.fused_graph, row.portable_graph, row.float_graph)
    ratios = (row.against_portable, row.against_portable_graph, row.against_float_graph)
    told = "".join(f"{time:10.1f}" for time in times) + "".join(f"{ratio:9.2f}x" for ratio in ratios)
    print(
        f"{row.operator:<12}{row.group:>6}{row.shape:>13}{row.tokens:>7}{row.error:>9.1e}{told}", flush=True
    )


def add_row(path: Path, row: Row) -> None:
    """A row is kept when it is measured, whatever comes after it."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(row)))
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def main(arguments: list[str] | None = None) -> None:
    given = options(arguments)
    names: list[str] = given.operator or list(NAMES)
    try:
        device = require_kernels(given.provider, names)
        shapes = [shape_of(*each) for each in itertools.product(given.shape or SHAPES, given.group or GROUPS)]
        bench = Bench(given)
        print(f"{device}, onnxruntime {ort.__version__}, float16, microseconds for one product")
        heads = (FUSED, PORTABLE, FLOAT, "graph: f.", "portable", "float")
        ratios = ("portable", "graphs", "float g.")
        print(f"{'operator':<12}{'group':>6}{'K x N':>13}{'tokens':>7}{'error':>9}", end="")
        print("".join(f"{head:>10}" for head in heads) + "".join(f"{head:>10}" for head in ratios))
        if given.csv:
            given.csv.unlink(missing_ok=True)
        for name, shape in itertools.product(names, shapes):
            for row in bench.rows(name, shape, given.tokens or list(TOKENS)):
                print_row(row)
                if given.csv:
                    add_row(given.csv, row)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
