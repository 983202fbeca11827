"""A weight's codes, scales and zero points as numbers that gradient descent can move."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from zq2onnx.numerics.grid import Float32Array, Quantized, least_scale
from zq2onnx.scheme import PerBlock, Scheme

Tensor = torch.Tensor

INSIDE = 0.49
"""How far from its code, in grid steps, a weight may begin: just short of the next code."""

_SCALE_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainableCodes:
    """A weight `[N, K]` on grids that are tuned, rounded with the straight-through estimator.

    `Ŵ = (clip(round(steps) + zero, 0, 2^b - 1) - zero) * scale`, rounding being the identity to
    gradients. Weights are counted in grid steps of the start, so that one learning rate serves every
    weight; scales are tuned by the logarithm of their change. Before any step it gives the start exactly.

    Args:
        weight: float32 `[N, K]`.
        scheme: gives bits, granularity and symmetry.
        float_dtype: the type in which scales are stored.
        start: where to begin; a method's codes need not be the nearest ones.

    Attributes:
        steps: float32 `[N, G, size]`, the last group filled up with zeros.
        stretch: float32 `[N, G]`, logarithm of a scale's change.
        shift: float32 `[N, G]`, change of a zero point in codes; fixed in symmetric schemes.
    """

    def __init__(
        self, weight: Float32Array, scheme: Scheme, float_dtype: npt.DTypeLike, start: Quantized
    ) -> None:
        n, k = weight.shape
        self._k = k
        self._groups = start.scales.shape[1]
        size = scheme.granularity.size if isinstance(scheme.granularity, PerBlock) else k
        self._size = min(size, k)
        self._levels = (1 << scheme.bits) - 1
        self._dtype = np.dtype(float_dtype)
        self._scale_type = _SCALE_TYPES[self._dtype.name]
        self._scale = _tensor(start.scales)
        self._zero = _tensor(start.zero_points)
        codes = self._grouped(_tensor(start.codes)) - self._zero[..., None]
        exact = self._grouped(_tensor(weight)) / self._scale[..., None]
        self.steps = (codes + (exact - codes).clamp(-INSIDE, INSIDE)).requires_grad_()
        self.stretch = torch.zeros(n, self._groups, requires_grad=True)
        self.shift = torch.zeros(n, self._groups, requires_grad=not scheme.symmetric)

    def parameters(self, steps: float, stretch: float, shift: float) -> list[dict[str, object]]:
        """What an optimizer tunes, with a learning rate for each kind; 0 leaves a kind as it is."""
        kinds = ((self.steps, steps), (self.stretch, stretch), (self.shift, shift))
        return [{"params": [kind], "lr": rate} for kind, rate in kinds if rate > 0 and kind.requires_grad]

    @property
    def row_unit(self) -> Tensor:
        """Mean squared grid step of each row at the start, `[N, 1]`."""
        return self._scale.square().mean(1, keepdim=True)

    def weight(self) -> Tensor:
        """`Ŵ`, float32 `[N, K]`, with gradients."""
        scale, zero = self._grids()
        codes = (_Rounded.apply(self.steps) + zero).clamp(0, self._levels)
        return ((codes - zero) * scale).flatten(1)[:, : self._k]

    def quantized(self) -> Quantized:
        """The codes, scales and zero points that `weight` stands for."""
        with torch.no_grad():
            scale, zero = self._grids()
            codes = (self.steps.round() + zero).clamp(0, self._levels).flatten(1)[:, : self._k]
        return Quantized(
            codes.numpy().astype(np.uint8),
            scale[..., 0].numpy().astype(self._dtype),
            zero[..., 0].numpy().astype(np.uint8),
        )

    def _grids(self) -> tuple[Tensor, Tensor]:
        """Scales that the stored type holds, and integer zero points, each `[N, G, 1]`."""
        largest = torch.finfo(self._scale_type).max
        scale = (self._scale * self.stretch.exp()).clamp(least_scale(self._dtype), largest)
        stored = _Stored.apply(scale, self._scale_type)
        zero = _Rounded.apply(self._zero + self.shift).clamp(0, self._levels)
        return stored[..., None], zero[..., None]

    def _grouped(self, matrix: Tensor) -> Tensor:
        filled = functional.pad(matrix, (0, self._groups * self._size - self._k))
        return filled.unflatten(1, (self._groups, self._size))


class BestRows:
    """Keeps, for each row of a weight, the codes of the least loss seen.

    Rows do not share anything, so each has a best of its own.

    Args:
        codes: what is trained; its start counts as seen once `keep` is called for it.
    """

    def __init__(self, codes: TrainableCodes) -> None:
        self._codes = codes
        self._best = codes.quantized()
        self._loss = torch.full((len(self._best.codes),), math.inf)

    def keep(self, loss: Tensor) -> None:
        """Look at the rows' losses `[N]` of the codes as they are now."""
        better = loss < self._loss
        if not bool(better.any()):
            return
        self._loss = torch.where(better, loss, self._loss)
        now, rows = self._codes.quantized(), better.numpy()
        self._best.codes[rows] = now.codes[rows]
        self._best.scales[rows] = now.scales[rows]
        self._best.zero_points[rows] = now.zero_points[rows]

    def result(self) -> Quantized:
        """The best rows."""
        return self._best


class _Rounded(torch.autograd.Function):
    """The nearest integer, with the gradient of what is rounded."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Stored(torch.autograd.Function):
    """The nearest value that a type holds, with the gradient of what is rounded."""

    @staticmethod
    def forward(ctx: object, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).float()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _tensor(array: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32, order="C"))
