"""What can be wrong with the input of a layer: what it is made of, or how it is rounded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zq2onnx.diagnosis.examination import Examination
from zq2onnx.diagnosis.findings import Cause, Finding, Indices, as_indices, named, number, percent
from zq2onnx.diagnosis.measure import energy
from zq2onnx.diagnosis.weight_rules import FEW

PEAK = 8.0
"""An outlier channel reaches this many times what the median channel reaches."""

_CODES = 127
_LEAST = 1e-30


def outlier_of_weights(seen: Examination) -> Finding | None:
    """Input channels so large that the rounding error of their weights is most of the error."""
    channels, peaks = _outliers(seen)
    if not channels.size:
        return None
    contributions = np.square(seen.x).sum(axis=0) * np.square(seen.rounded - seen.weight).sum(axis=1)
    order = channels[np.argsort(-contributions[channels])]
    share = float(contributions[channels].sum() / max(float(contributions.sum()), _LEAST))
    whose = "its" if len(order) == 1 else "their"
    sentence = (
        f"{_described(order, peaks)}; the rounding error of {whose} weights makes {percent(share)} of the"
        " layer's own error"
    )
    return Finding(seen.layer.name, Cause.OUTLIER_CHANNEL, sentence, share, as_indices(order))


def outlier_of_activations(seen: Examination) -> Finding | None:
    """Input channels so large that the others have few int8 steps left."""
    channels, peaks = _outliers(seen)
    if not channels.size:
        return None
    order = channels[np.argsort(-peaks[channels])]
    step = seen.limits.step if seen.limits is not None else float(peaks[order[0]]) / _CODES
    share = seen.by_activations / (seen.by_activations + seen.by_weight)
    sentence = (
        f"{_described(order, peaks)}, so that int8 steps are as wide as {number(step)}; the rounding of the "
        f"input makes {percent(share)} of the layer's own error"
    )
    return Finding(seen.layer.name, Cause.OUTLIER_CHANNEL, sentence, share, as_indices(order))


def _outliers(seen: Examination) -> tuple[Indices, npt.NDArray[np.float32]]:
    """The channels that reach far more than the median one, if they are few; and what all reach."""
    peaks = np.abs(seen.x).max(axis=0)
    channels = np.flatnonzero(peaks >= PEAK * max(float(np.median(peaks)), _LEAST))
    return (channels if len(channels) <= max(1, FEW * len(peaks)) else channels[:0]), peaks


def _described(order: Indices, peaks: npt.NDArray[np.float32]) -> str:
    """The channels, and what the first of them reaches."""
    first, usual = int(order[0]), max(float(np.median(peaks)), _LEAST)
    which = f"outlier {named('channel', order)} of its input"
    reaches = "reaches" if len(order) == 1 else f": channel {first} reaches"
    return (
        f"{which}{' ' if len(order) == 1 else ''}{reaches} {number(float(peaks[first]))}, "
        f"{float(peaks[first]) / usual:.0f} times the median channel's {number(usual)}"
    )


def clipped_activations(seen: Examination) -> Finding | None:
    """Activations beyond what the constant scale holds."""
    if seen.limits is None:
        return None
    lost = np.clip(seen.x, seen.limits.least, seen.limits.greatest) - seen.x
    cut = np.abs(lost) > seen.limits.step
    if not cut.any():
        return None
    share = min(1.0, energy(lost @ seen.rounded) / max(seen.by_activations, _LEAST))
    by_channel = np.square(lost).sum(axis=0) * np.square(seen.rounded).sum(axis=1)
    order = np.argsort(-by_channel)[: np.count_nonzero(cut.any(axis=0))]
    peak = float(np.abs(seen.x[:, order[0]]).max())
    sentence = (
        f"its constant scale holds inputs from {number(seen.limits.least)} to "
        f"{number(seen.limits.greatest)}, and {named('channel', order)} go beyond: channel {order[0]} "
        f"reaches {number(peak)}; {np.count_nonzero(cut)} of {seen.x.size} inputs are cut off"
    )
    return Finding(seen.layer.name, Cause.CLIPPED_ACTIVATIONS, sentence, share, as_indices(order))
