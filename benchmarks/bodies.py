"""Times the operators' bodies on stock ONNX Runtime, and weighs what loading them takes.

    python benchmarks/bodies.py [--tokens 64] [--activation a16|a8|a8block]...

One token by default, one 4096 x 4096 weight in groups of 128, asymmetric, no branch: each width's body, of
every kind of activation asked for, beside a float32 `MatMul` and `MatMulNBits` of the same width at
accuracy level 0 (there is none of 3 bits).
All take turns of a few products; each has several weights in rotation, so that none finds its weight
in the cache. Then, each in a process of its own, the peak memory of opening a session on a file of
packed weights: the growth of VmHWM per weight. glibc keeps freed blocks of up to 32 MB for itself once it has
seen such; `MALLOC_MMAP_THRESHOLD_=131072` (its own first value) makes it give them back, and
shows what ONNX Runtime itself needs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from zq2onnx.layout import PackedLayout, packed_layout
from zq2onnx.opset import (
    DOMAIN,
    DOMAIN_VERSION,
    MICROSOFT,
    OPERATORS,
    Operator,
    function_proto,
    node_attributes,
)
from zq2onnx.scheme import WEIGHT_BITS, PerBlock

SIZE = 4096
GROUP = PerBlock(128)
STOCK_BITS = (8, 4, 2)
ROTATED_BYTES = 200_000_000
"""Weights of one kind in rotation: more than the caches of most machines."""

PRODUCTS = 8
"""Products at a turn."""

FLOAT = "fp32 MatMul"
ACTIVATIONS = {"a16": "A16", "a8": "A8", "a8block": "A8Block"}


class WeightFile:
    """External data that grows by random initializers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.rng = np.random.default_rng(0)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: Any) -> TensorProto:
        """Append a tensor: any bytes, or small positive floats."""
        if dtype == np.uint8:
            array = self.rng.integers(0, 256, shape, np.uint8)
        else:
            array = self.rng.uniform(0.001, 0.002, shape).astype(np.float32)
        proto = TensorProto(name=name, dims=shape, data_location=TensorProto.EXTERNAL)
        proto.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (
            ("location", self.path.name),
            ("offset", self.file.tell()),
            ("length", array.nbytes),
        ):
            proto.external_data.add(key=key, value=str(value))
        self.file.write(array.tobytes())
        return proto


def write_model(path: Path, kind: str, size: int, copies: int) -> Path:
    """A model of `copies` products of one kind, each with weights of its own, that all read `A`."""
    weights = WeightFile(path.with_suffix(".data"))
    operator = OPERATORS.get(kind)
    nodes, constants = [], []
    for at in range(copies):
        if kind == FLOAT:
            tensors, node = [weights.tensor(f"W{at}", (size, size), np.float32)], ("MatMul", "", {})
        elif operator is not None:
            layout = packed_layout(size, size, operator.bits, GROUP, whole_bytes=operator.whole_bytes)
            tensors, node = packed(weights, at, layout), (kind, DOMAIN, node_attributes(layout))
        else:
            layout = packed_layout(size, size, int(kind.split()[-2]), GROUP)
            tensors, node = stock(weights, at, layout)
        constants += tensors
        inputs = ["A", *(tensor.name for tensor in tensors)]
        nodes.append(helper.make_node(node[0], inputs, [f"Y{at}"], domain=node[1], **node[2]))
    weights.file.close()
    graph = helper.make_graph(
        nodes,
        "bodies",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["tokens", size])],
        [
            helper.make_tensor_value_info(f"Y{at}", TensorProto.FLOAT, ["tokens", size])
            for at in range(copies)
        ],
        constants,
    )
    imports = [helper.make_opsetid(*item) for item in (("", 21), (DOMAIN, DOMAIN_VERSION), (MICROSOFT, 1))]
    functions = [] if operator is None else [function_proto(operator)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=imports, functions=functions), path)
    return path


def packed(weights: WeightFile, at: int, layout: PackedLayout) -> list[TensorProto]:
    """Codes, scales and zero points of one of our nodes."""
    return [
        weights.tensor(f"B{at}", layout.codes_shape, np.uint8),
        weights.tensor(f"scales{at}", layout.scales_shape, np.float32),
        weights.tensor(f"zero_points{at}", layout.zero_points_shape, np.uint8),
    ]


def stock(
    weights: WeightFile, at: int, layout: PackedLayout
) -> tuple[list[TensorProto], tuple[str, str, dict]]:
    """The same of a `MatMulNBits`, and the node; its 8-bit codes are whole bytes."""
    codes_shape = (layout.n, layout.k_blocks, layout.block_size * layout.bits // 8)
    tensors = [
        weights.tensor(f"B{at}", codes_shape, np.uint8),
        weights.tensor(f"scales{at}", (layout.n * layout.k_blocks,), np.float32),
        weights.tensor(f"zero_points{at}", (layout.n * -(-layout.k_blocks * layout.bits // 8),), np.uint8),
    ]
    attributes = {
        "K": layout.k,
        "N": layout.n,
        "bits": layout.bits,
        "block_size": layout.block_size,
        "accuracy_level": 0,
    }
    return tensors, ("MatMulNBits", MICROSOFT, attributes)


def stored_bits(kind: str) -> int:
    if kind == FLOAT:
        return 32
    operator = OPERATORS.get(kind)
    return int(kind.split()[-2]) if operator is None else operator.bits


def time_kinds(folder: Path, kinds: list[str], rounds: int, threads: int, tokens: int) -> dict[str, float]:
    """Median milliseconds of one product of every kind; the kinds take turns."""
    # One pool for all: a session's own threads would spin into the next one's product.
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    turns = {}
    for kind in kinds:
        copies = max(2, ROTATED_BYTES * 8 // (SIZE * SIZE * stored_bits(kind)))
        path = write_model(folder / f"{kind}.onnx", kind, SIZE, 1)
        turns[kind] = itertools.cycle(
            [onnxruntime.InferenceSession(str(path), options) for _ in range(copies)]
        )
    a = np.random.default_rng(1).standard_normal((tokens, SIZE)).astype(np.float32)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, sessions in turns.items():
            for session in itertools.islice(sessions, PRODUCTS):
                start = time.perf_counter()
                session.run(None, {"A": a})
                times[kind].append(1e3 * (time.perf_counter() - start))
    return {kind: statistics.median(values) for kind, values in times.items()}


MEASURE = """
import re, sys, onnxruntime
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
session = onnxruntime.InferenceSession(sys.argv[1])
print(peak() - before)
"""


def load_peaks(
    folder: Path, megabytes: int, operators: list[Operator]
) -> Iterator[tuple[Operator, list[float]]]:
    """Each operator without branch, and the bytes per weight at the peak of loading its file.

    The first as malloc comes, the second with glibc's threshold held.
    """
    for operator in operators:
        copies = round(megabytes * 1e6 * 8 / (SIZE * SIZE * operator.bits))
        path = write_model(folder / "model.onnx", operator.name, SIZE, copies)
        command = [sys.executable, "-c", MEASURE, path]
        environments = (dict(os.environ), os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"})
        answers = [
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            for environment in environments
        ]
        yield operator, [int(answer) / (copies * SIZE * SIZE) for answer in answers]


def show_times(times: dict[str, float]) -> None:
    print(f"{'':24}{'ms':>8}{'x fp32':>8}{'x level 0':>11}")
    for kind, milliseconds in times.items():
        stock_time = times.get(f"MatMulNBits {stored_bits(kind)} bits") if kind in OPERATORS else None
        beside = "" if stock_time is None else f"{stock_time / milliseconds:11.2f}"
        print(f"{kind:24}{milliseconds:8.2f}{times[FLOAT] / milliseconds:8.2f}{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="turns of every kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1, help="rows of the activation")
    parser.add_argument(
        "--megabytes", type=int, default=400, help="packed weights in a file to load; 0: none"
    )
    parser.add_argument(
        "--activation",
        action="append",
        choices=ACTIVATIONS,
        help="kind of the bodies' activations; default: all",
    )
    given = parser.parse_args()
    activations = [ACTIVATIONS[name] for name in given.activation or ACTIVATIONS]
    operators = [OPERATORS[f"MatMulW{bits}{name}"] for name in activations for bits in WEIGHT_BITS]
    kinds = [FLOAT, *(operator.name for operator in operators)]
    kinds += [f"MatMulNBits {bits} bits" for bits in STOCK_BITS]
    print(
        f"onnxruntime {onnxruntime.__version__}, {given.threads} threads, {given.tokens} tokens,"
        f" {SIZE} x {SIZE}, cold"
    )
    with tempfile.TemporaryDirectory(prefix="zq2onnx-bodies-") as folder:
        show_times(time_kinds(Path(folder), kinds, given.rounds, given.threads, given.tokens))
        if not given.megabytes:
            return
        print(f"\npeak of loading {given.megabytes} MB of packed weights, bytes per weight")
        print(f"{'':24}{'malloc as it is':>16}{'threshold held':>16}")
        for operator, peaks in load_peaks(Path(folder), given.megabytes, operators):
            print(f"{operator.name:24}", *(f"{peak:16.2f}" for peak in peaks), sep="", flush=True)


if __name__ == "__main__":
    main()
