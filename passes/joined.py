"""Several weights as one, joined when they are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.recast import read_anew


class JoinedTensor(ir.LazyTensor):
    """Weights side by side, `[K, N1 + N2 + ..]`; each is mapped when the whole is read, and none is kept.

    Attributes:
        views: what is joined.
    """

    def __init__(self, views: Sequence[WeightView]) -> None:
        shape = ir.Shape((views[0].k, sum(view.n for view in views)))
        name = joined([view.name for view in views])
        super().__init__(self._read, dtype=views[0].dtype, shape=shape, name=name)
        self.views = tuple(views)

    def _read(self) -> ir.TensorProtocol:
        return ir.Tensor(np.concatenate([_matrix(view) for view in self.views], axis=1), name=self.name)


def _matrix(view: WeightView) -> np.ndarray:
    """A weight `[K, N]` as its node reads it."""
    tensor = view.tensor
    stored = (read_anew(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor).numpy()
    matrix = stored.reshape(view.n, view.k).T if view.transposed else stored.reshape(view.k, view.n)
    return matrix.astype(view.dtype.numpy(), copy=False)


def joined(names: Sequence[str]) -> str:
    """A name of all: what they begin with once, then the rest of each.

    >>> joined(["layers.0.q_proj.weight", "layers.0.k_proj.weight"])
    'layers.0.q_proj.weight+k_proj.weight'
    """
    common = names[0]
    while not all(name.startswith(common) for name in names) or common[-1:] not in ("", ".", "/"):
        common = common[:-1]
    return common + "+".join(name.removeprefix(common) for name in names)
