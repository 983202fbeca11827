"""Array mathematics of quantization, with no graph: grids, rounding, low-rank factors, packing."""

from zq2onnx.numerics.grid import Quantized, dequantize
from zq2onnx.numerics.lowrank import Factors, low_rank, residual_energy
from zq2onnx.numerics.quantize import QuantizedWeight, quantize_weight
from zq2onnx.numerics.rtn import quantize_rtn

__all__ = [
    "Factors",
    "Quantized",
    "QuantizedWeight",
    "dequantize",
    "low_rank",
    "quantize_rtn",
    "quantize_weight",
    "residual_energy",
]
