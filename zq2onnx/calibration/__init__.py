"""Calibration: text to samples, and a model walked piece by piece over them."""

from __future__ import annotations

from zq2onnx.calibration.samples import Samples, load_samples
from zq2onnx.calibration.walk import Step, Walk

__all__ = ["Samples", "Step", "Walk", "load_samples"]
