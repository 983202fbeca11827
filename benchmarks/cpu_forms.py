"""The forms of a product that `cpu_matmul` compares: made, checked against each other, and timed in turns."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.cpu_verdict import FLOAT32, FUNCTION, FUSED, LEVEL_0, LEVEL_4, RANK_0, W4A16, Row
from benchmarks.products import FloatMatMul, Kind, OurMatMul, Shape, StockNBits, stored_bytes
from benchmarks.turns import PROCESSORS, Chain, MemoryRead, median_ratio, one_pool, take_turns, write_chain
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.library import register

TOLERANCE = 0.02
"""Of a fused result against its function's, by norms: near a middle int8 activations may round otherwise."""

READ_BYTES = 1 << 28


@dataclass(frozen=True)
class Bench:
    """Operators of one name, of some ranks, timed in the same turns."""

    name: str
    shape: Shape
    ranks: tuple[int, ...]
    tokens: tuple[int, ...]


class Workshop:
    """Makes chains; keeps those of the references as long as the shape stays the same."""

    def __init__(self, folder: Path, threads: int, cold_bytes: int) -> None:
        options = one_pool(threads)
        self.folder, self.cold_bytes = folder, cold_bytes
        self.plain, self.fused = options(), options()
        # What is asked for by name is registered whether it pays or not.
        register(self.fused, list(OPERATORS), "cpu")
        self.read = MemoryRead(threads, READ_BYTES)
        self.stock: dict[tuple[Kind, Shape], Chain] = {}

    def chain(self, kind: Kind, shape: Shape, *options: onnxruntime.SessionOptions) -> list[Chain]:
        """A chain of the same file for each of the options."""
        paths = write_chain(self.folder, kind, shape, self.cold_bytes)
        return [Chain(paths, shape, each) for each in options]

    def references(self, bits: int, shape: Shape) -> dict[str, Chain]:
        width = 4 if bits == 3 else bits
        kinds: dict[str, Kind] = {
            LEVEL_0: StockNBits(width, 0),
            LEVEL_4: StockNBits(width, 4),
            FLOAT32: FloatMatMul(),
        }
        for key in [key for key in self.stock if key[1] != shape]:
            del self.stock[key]
        for kind in kinds.values():
            if (kind, shape) not in self.stock:
                (self.stock[kind, shape],) = self.chain(kind, shape, self.plain)
        return {label: self.stock[kind, shape] for label, kind in kinds.items()}

    def chains(self, bench: Bench) -> dict[str, Chain]:
        """Every form that takes turns, `fused 8` that of rank 8; fused ones beside each other, 0 first."""
        references = self.references(int(bench.name[1]), bench.shape)
        fused, functions = {}, {}
        for rank in sorted({0, *bench.ranks}):
            kind = OurMatMul(OPERATORS[f"MatMul{bench.name}{'LoRC' if rank else ''}"], rank)
            if rank in bench.ranks:
                fused[f"{FUSED} {rank}"], functions[f"{FUNCTION} {rank}"] = self.chain(
                    kind, bench.shape, self.fused, self.plain
                )
            else:
                (fused[f"{FUSED} {rank}"],) = self.chain(kind, bench.shape, self.fused)
        if bench.name == "W3A16" and 1 in bench.tokens:
            (fused[W4A16],) = self.chain(OurMatMul(OPERATORS["MatMulW4A16"]), bench.shape, self.fused)
        return fused | functions | references

    def rows(self, bench: Bench, rounds: int) -> Iterator[Row]:
        chains = self.chains(bench)
        for tokens in bench.tokens:
            a = np.random.default_rng(tokens).standard_normal((tokens, bench.shape.k), np.float32)
            taking = {label: chain for label, chain in chains.items() if label != W4A16 or tokens == 1}
            for chain in taking.values():
                chain.prepare(a, rounds)
            for rank in bench.ranks:
                require_same(f"MatMul{bench.name} rank {rank}", chains, rank, a)
            before = {f"{FUSED} 0": self.read} if tokens == 1 else {}
            taken = take_turns(taking, tokens, rounds, before)
            yield from (row(bench, tokens, rank, taken) for rank in bench.ranks)


def require_same(what: str, chains: dict[str, Chain], rank: int, a: np.ndarray) -> None:
    """The fused operator computes what its function does.

    Raises:
        SystemExit: with a message and status 1; to time it would tell nothing.
    """
    fused, function = (chains[f"{form} {rank}"].first(a) for form in (FUSED, FUNCTION))
    error = float(np.linalg.norm(fused - function) / np.linalg.norm(function))
    if not error < TOLERANCE:
        sys.exit(f"error: {what}, {len(a)} tokens: the fused result is {error:.2g} off its function's")


def row(bench: Bench, tokens: int, rank: int, taken: dict[str, np.ndarray]) -> Row:
    """Medians of the turns."""
    fused = taken[f"{FUSED} {rank}"]
    labels = {FUSED: f"{FUSED} {rank}", FUNCTION: f"{FUNCTION} {rank}"}
    labels |= {label: label for label in (LEVEL_0, LEVEL_4, FLOAT32)}
    if rank:
        labels[RANK_0] = f"{FUSED} 0"
    elif W4A16 in taken:
        labels[W4A16] = W4A16
    ms = {form: float(np.nanmedian(taken[label])) for form, label in labels.items()}
    times = {form: median_ratio(taken[label], fused) for form, label in labels.items()}
    rates = stored_bytes(OurMatMul(OPERATORS[f"MatMul{bench.name}"]), bench.shape) / fused / 1e6
    reads = taken.get(f"before {FUSED} 0")  # taken at one token
    return Row(
        bench.name,
        bench.shape,
        tokens,
        rank,
        ms,
        times,
        rate=math.nan if reads is None else float(np.nanmedian(rates)),
        of_read=math.nan if reads is None else median_ratio(rates, reads),
        processors=float(np.median(taken[PROCESSORS])),
    )
