"""ZQ-Local and ZQ-Global: what they lower, what they may return, and that torch stays out of the rest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests import zoo
from zq2onnx.errors import UserError
from zq2onnx.numerics.grid import Quantized, dequantize
from zq2onnx.numerics.rtn import quantize_rtn
from zq2onnx.passes.partition import blocks, partition
from zq2onnx.scheme import ActGranularity, Activation, PerBlock, PerChannel, Scheme

torch = pytest.importorskip("torch", reason="needs torch")

from zq2onnx.calibration.torch_piece import TorchPiece  # noqa: E402
from zq2onnx.numerics.distill import zq_local  # noqa: E402
from zq2onnx.numerics.distill_block import BlockLinear, Feeds, zq_global  # noqa: E402
from zq2onnx.numerics.distill_grid import BestRows, TrainableCodes  # noqa: E402
from zq2onnx.numerics.distill_int8 import fake_int8  # noqa: E402

N, K = 16, 100
ROW, GROUP = PerChannel(), PerBlock(32)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: more threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and the second moment of inputs most of whose energy lies in a few directions."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((N, K), dtype=np.float32)
    inputs = rng.standard_normal((600, 12)) @ rng.standard_normal((12, K)) + 0.3 * rng.standard_normal(
        (600, K)
    )
    return weight, (inputs.T @ inputs / len(inputs)).astype(np.float32)


def row_errors(weight: np.ndarray, second: np.ndarray, quantized: Quantized, scheme: Scheme) -> np.ndarray:
    """`e R eᵀ` of each row, in float64."""
    error = weight.astype(np.float64) - dequantize(quantized, scheme.granularity)
    return np.einsum("nk,kl,nl->n", error, second.astype(np.float64), error)


def assert_legal(quantized: Quantized, scheme: Scheme, dtype: type) -> None:
    groups = scheme.granularity.groups(quantized.codes.shape[1])
    assert quantized.codes.dtype == quantized.zero_points.dtype == np.uint8
    assert quantized.scales.dtype == np.dtype(dtype)
    assert quantized.scales.shape == quantized.zero_points.shape == (len(quantized.codes), groups)
    assert quantized.codes.max() < 1 << scheme.bits
    assert quantized.zero_points.max() < 1 << scheme.bits
    scales = quantized.scales.astype(np.float32)
    assert (scales > 0).all() and np.isfinite(scales).all()
    if scheme.symmetric:
        assert (quantized.zero_points == scheme.midpoint).all()


def assert_same(a: Quantized, b: Quantized) -> None:
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.scales, b.scales)
    np.testing.assert_array_equal(a.zero_points, b.zero_points)


@pytest.mark.parametrize("symmetric", (False, True))
@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@pytest.mark.parametrize("granularity", (ROW, GROUP), ids=str)
def test_zq_local_lowers_the_output_error(
    granularity: PerChannel | PerBlock, bits: int, symmetric: bool
) -> None:
    scheme = Scheme(bits=bits, granularity=granularity, symmetric=symmetric)
    weight, second = problem()
    start = quantize_rtn(weight, scheme, np.float32)
    tuned = zq_local(weight, second, scheme, np.float32, start=start, steps=100)
    assert_legal(tuned, scheme, np.float32)
    before = row_errors(weight, second, start, scheme)
    after = row_errors(weight, second, tuned, scheme)
    assert (after <= before * 1.001).all()
    assert after.sum() < 0.5 * before.sum()


@pytest.mark.parametrize("dtype", (np.float16, ml_dtypes.bfloat16))
def test_scales_are_values_that_the_stored_type_holds(dtype: type) -> None:
    scheme = Scheme(bits=4, granularity=GROUP)
    weight, second = problem()
    start = quantize_rtn(weight, scheme, dtype)
    tuned = zq_local(weight, second, scheme, dtype, start=start, steps=60)
    assert_legal(tuned, scheme, dtype)
    assert not np.array_equal(tuned.scales, start.scales)
    after = row_errors(weight, second, tuned, scheme).sum()
    assert after < 0.6 * row_errors(weight, second, start, scheme).sum()


def test_a_weight_as_small_as_float16s_subnormals() -> None:
    scheme = Scheme(bits=8, granularity=ROW)
    weight, second = problem()
    weight *= np.float32(1e-5)
    start = quantize_rtn(weight, scheme, np.float16)
    tuned = zq_local(weight, second, scheme, np.float16, start=start, steps=20)
    assert_legal(tuned, scheme, np.float16)
    assert (
        row_errors(weight, second, tuned, scheme) <= 1.001 * row_errors(weight, second, start, scheme)
    ).all()


def test_no_steps_return_the_start_whatever_its_codes() -> None:
    scheme = Scheme(bits=3, granularity=GROUP)
    weight, second = problem()
    start = quantize_rtn(weight, scheme, np.float16)
    start.codes[:, ::5] = np.random.default_rng(1).integers(0, 8, start.codes[:, ::5].shape)
    assert_same(zq_local(weight, second, scheme, np.float16, start=start, steps=0), start)


def test_the_size_of_the_second_moment_does_not_matter() -> None:
    scheme = Scheme(bits=4, granularity=ROW)
    weight, second = problem()
    start = quantize_rtn(weight, scheme, np.float32)
    tuned = [
        zq_local(weight, second * np.float32(size), scheme, np.float32, start=start, steps=30)
        for size in (1, 2**20, 2**-20)
    ]
    assert_same(tuned[0], tuned[1])
    assert_same(tuned[0], tuned[2])


def test_zq_local_gives_the_same_bytes_again() -> None:
    scheme = Scheme(bits=4, granularity=GROUP)
    weight, second = problem()
    start = quantize_rtn(weight, scheme, np.float32)
    kept = start.codes.copy()
    once, again = (zq_local(weight, second, scheme, np.float32, start=start, steps=30) for _ in range(2))
    assert_same(once, again)
    np.testing.assert_array_equal(start.codes, kept)
    assert not np.array_equal(once.codes, start.codes)


def test_inputs_that_are_always_zero_leave_the_start() -> None:
    scheme = Scheme(bits=4, granularity=ROW)
    weight, second = problem()
    start = quantize_rtn(weight, scheme, np.float32)
    assert_same(zq_local(weight, second * 0, scheme, np.float32, start=start), start)


def test_rows_keep_their_own_best() -> None:
    scheme = Scheme(bits=4, granularity=ROW)
    weight, _ = problem()
    start = quantize_rtn(weight, scheme, np.float32)
    codes = TrainableCodes(weight, scheme, np.float32, start)
    best = BestRows(codes)
    best.keep(torch.ones(N))
    with torch.no_grad():
        codes.steps.zero_()
    losses = torch.ones(N)
    losses[3] = 0.5
    best.keep(losses)
    kept = best.result()
    np.testing.assert_array_equal(np.delete(kept.codes, 3, 0), np.delete(start.codes, 3, 0))
    assert (kept.codes[3] == kept.zero_points[3]).all()


def test_the_trainable_weight_is_what_the_codes_dequantize_to() -> None:
    scheme = Scheme(bits=3, granularity=GROUP)
    weight, _ = problem()
    codes = TrainableCodes(weight, scheme, np.float16, quantize_rtn(weight, scheme, np.float16))
    rng = np.random.default_rng(2)
    with torch.no_grad():
        for part in (codes.steps, codes.stretch, codes.shift):
            part += torch.from_numpy(rng.standard_normal(part.shape).astype(np.float32))
        made = codes.weight().numpy()
    assert_legal(codes.quantized(), scheme, np.float16)
    np.testing.assert_array_equal(made, dequantize(codes.quantized(), GROUP))


@pytest.mark.parametrize(("granularity", "size"), [(ActGranularity.TOKEN, 6), (ActGranularity.BLOCK, 16)])
def test_int8_activations(granularity: ActGranularity, size: int) -> None:
    width = 6 if granularity is ActGranularity.TOKEN else 40
    scheme = Scheme(activation=Activation.A8, act_granularity=granularity, granularity=PerBlock(16))
    x = np.random.default_rng(0).standard_normal((3, width)).astype(np.float32)
    x[1] = 0
    given = torch.from_numpy(x).requires_grad_()
    made = fake_int8(given, scheme)
    for first in range(0, width, size):
        part = x[:, first : first + size]
        scale = np.abs(part).max(1, keepdims=True) / 127
        want = np.rint(part / np.where(scale > 0, scale, 1)) * scale
        np.testing.assert_allclose(made[:, first : first + size].detach().numpy(), want, rtol=0, atol=1e-6)
    made.sum().backward()
    assert (given.grad == 1).all()
    static = Scheme(activation=Activation.A8, act_granularity=ActGranularity.TENSOR)
    assert fake_int8(given, static) is given


class Block:
    """The last transformer block of a zoo model: its halves, linears and some inputs."""

    def __init__(self, name: str, scheme: Scheme, count: int = 4) -> None:
        path = zoo.model(name)
        model = ir.load(path)
        pieces = partition(model)
        first = [block for block in blocks(pieces) if len(block) == 2][-1]
        before = pieces[: pieces.index(first[0])]
        self.scheme = scheme
        self.halves = [TorchPiece(p.nodes, [str(v.name) for v in p.outputs]) for p in first]
        self.output = str(first[-1].outputs[-1].name)  # hidden values come after side values
        self.batches = []
        for seed in range(count):
            values = {k: torch.from_numpy(v) for k, v in zoo.feeds(path, 2, 12, seed).items()}
            for piece in before:
                values |= TorchPiece(piece.nodes, [str(v.name) for v in piece.outputs]).run(values)
            feeds = {k: v.numpy() for k, v in values.items()}
            self.batches.append((feeds, feeds, seed == count - 1 > 0))
        self.weights = {
            node.name: np.array(weight.numpy() if node.op_type == "Gemm" else weight.numpy().T, order="C")
            for piece in first
            for node in piece.nodes
            if node.op_type in ("MatMul", "Gemm") and (weight := node.inputs[1].const_value) is not None
        }
        self.linears = {
            name: BlockLinear(weight, scheme, quantize_rtn(weight, scheme, np.float32))
            for name, weight in self.weights.items()
        }

    def tune(self, dtype: type = np.float32, **options: object) -> dict[str, Quantized]:
        options = {"lr": 0.01, **options}  # large, for few steps
        return zq_global(self.halves, self.linears, lambda: self.batches, self.output, dtype, **options)

    def error(self, quantized: dict[str, Quantized]) -> float:
        """Squared error of the block's output over all batches, as a part of that of rounding to nearest."""
        starts = {name: linear.start for name, linear in self.linears.items()}
        total = [0.0, 0.0]
        for feeds, _, _ in self.batches:
            wanted = self.run(feeds, self.weights)
            for kind, codes in enumerate((quantized, starts)):
                weights = {name: dequantize(q, self.scheme.granularity) for name, q in codes.items()}
                total[kind] += float(((self.run(feeds, weights) - wanted) ** 2).sum())
        return total[0] / total[1]

    def run(self, feeds: Feeds, weights: dict[str, np.ndarray]) -> np.ndarray:
        values = {name: torch.from_numpy(array) for name, array in feeds.items()}
        for half in self.halves:
            values |= half.run(values, {name: torch.from_numpy(w) for name, w in weights.items()})
        return values[self.output].numpy()


@pytest.mark.parametrize("name", ("opt", "llama"))
def test_zq_global_lowers_the_error_of_the_blocks_output(name: str) -> None:
    block = Block(name, Scheme(bits=3, granularity=ROW))
    assert len(block.linears) == (6 if name == "opt" else 7)
    tuned = block.tune(steps=20)
    assert set(tuned) == set(block.linears)
    for codes in tuned.values():
        assert_legal(codes, block.scheme, np.float32)
    assert block.error(tuned) < 0.7


def test_zq_global_gives_the_same_bytes_again() -> None:
    block = Block("opt", Scheme(bits=4, granularity=GROUP))
    once, again = block.tune(np.float16, steps=7), block.tune(np.float16, steps=7)
    for name, codes in once.items():
        assert_legal(codes, block.scheme, np.float16)
        assert_same(codes, again[name])
    assert any(not np.array_equal(once[name].codes, block.linears[name].start.codes) for name in once)


def test_zq_global_without_steps_returns_the_start() -> None:
    block = Block("opt", Scheme(bits=4, granularity=GROUP), count=1)
    tuned = block.tune(steps=0)
    for name, codes in tuned.items():
        assert_same(codes, block.linears[name].start)


def doubled(feeds: Feeds) -> Feeds:
    """Hidden values times two; masks, whose values are the greatest there are, as they were."""
    return {k: v * 2 if v.dtype == np.float32 and np.abs(v).max() < 1e4 else v for k, v in feeds.items()}


def test_a_teacher_with_inputs_of_its_own_pulls_the_student_there() -> None:
    block = Block("opt", Scheme(bits=4, granularity=GROUP), count=2)
    own = block.tune(steps=10)
    block.batches = [(feeds, doubled(feeds), held_out) for feeds, _, held_out in block.batches]
    others = block.tune(steps=10)
    both = block.tune(steps=10, teacher_inputs=True)
    assert block.error(own) < 1 < block.error(others)
    assert block.error(both) < 1
    assert any(not np.array_equal(own[name].codes, both[name].codes) for name in own)


def test_the_student_rounds_its_activations_where_the_scheme_does() -> None:
    a8 = Scheme(bits=4, activation=Activation.A8, granularity=GROUP)
    block, float_block = Block("opt", a8, count=2), Block("opt", Scheme(bits=4, granularity=GROUP), count=2)
    tuned, plain = block.tune(steps=5), float_block.tune(steps=5)
    assert any(not np.array_equal(tuned[name].codes, plain[name].codes) for name in tuned)


def test_an_output_that_is_not_finite_is_the_users() -> None:
    block = Block("opt", Scheme(bits=4, granularity=GROUP), count=2)
    feeds = block.batches[-1][0]
    spoilt = {k: v * np.nan if v.dtype == np.float32 else v for k, v in feeds.items()}
    block.batches[-1] = (spoilt, spoilt, True)
    with pytest.raises(UserError, match="not finite"):
        block.tune(steps=3)
    block.batches.clear()
    with pytest.raises(ValueError, match="no batches"):
        block.tune(steps=3)


def test_nothing_but_distillation_touches_torch_at_import() -> None:
    program = """
import importlib, pkgutil, sys
sys.modules["torch"] = None
import zq2onnx.calibration, zq2onnx.numerics
for room in (zq2onnx.calibration, zq2onnx.numerics):
    for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
        if not module.name.split(".")[-1].startswith(("torch_", "distill")):
            importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
