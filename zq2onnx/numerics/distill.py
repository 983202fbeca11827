"""ZQ-Local: the codes of one linear layer by gradient descent on its output error.

Z. Yao et al., "ZeroQuant-V2: Exploring Post-training Quantization in LLMs from Comprehensive Study
to Low Rank Compensation", 2023, section 3. Over calibration inputs `x` the squared error of the
output is `‖Wx - Ŵx‖² = tr((W - Ŵ) R (W - Ŵ)ᵀ)` with `R = E[x xᵀ]`, so the inputs themselves are
not needed. Needs torch: nothing else of the numerics imports this module.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from zq2onnx.numerics.distill_grid import BestRows, TrainableCodes
from zq2onnx.numerics.grid import Float32Array, Quantized
from zq2onnx.scheme import Scheme

STEPS = 250
LEARNING_RATE = 0.004
"""Of weights, in grid steps. Five times as much ends at half as large an error again, and a worse model."""
SCALE_RATE = 1.0
"""Learning rate of scales (of their logarithms) as a part of the weights'."""
ZERO_RATE = 10.0
"""The same of zero points, in codes."""
FINAL_RATE = 0.01
"""What is left of the learning rates at the last step."""


def zq_local(
    weight: Float32Array,
    second: Float32Array,
    scheme: Scheme,
    float_dtype: npt.DTypeLike,
    *,
    start: Quantized,
    steps: int = STEPS,
    lr: float = LEARNING_RATE,
) -> Quantized:
    """Tune codes, scales and zero points for the least output error.

    Deterministic for a number of torch's threads. Each row ends at the best of what it passed
    through, its start included, so the error never grows.

    Args:
        weight: `[N, K]`, finite.
        second: `R = E[x xᵀ]`, `[K, K]`, symmetric, finite; only its shape matters, not its size.
        scheme: gives bits, granularity and symmetry.
        float_dtype: float32, float16 or bfloat16, in which scales are stored.
        start: codes to begin with, round-to-nearest's as a rule.
        steps: of Adam.
        lr: learning rate of the weights, in grid steps.
    """
    scale = float(np.diagonal(second).mean())
    codes = TrainableCodes(weight, scheme, float_dtype, start)
    best = BestRows(codes)
    if not scale > 0 or weight.size == 0:
        return best.result()
    target = torch.from_numpy(np.array(weight, np.float32, order="C"))
    moment = torch.from_numpy(np.array(second, np.float32, order="C")) / scale
    optimizer = torch.optim.Adam(codes.parameters(lr, SCALE_RATE * lr, ZERO_RATE * lr))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, FINAL_RATE, max(1, steps))
    for _ in range(steps):
        error = target - codes.weight()
        pushed = error.detach() @ moment
        best.keep((error.detach() * pushed).sum(1))
        # R is symmetric: this has the gradient of tr(E R Eᵀ), for one product instead of two.
        (2 * error * pushed / codes.row_unit).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        error = target - codes.weight()
        best.keep((error * (error @ moment)).sum(1))
    return best.result()
