"""What can be wrong with the weights of a layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zq2onnx.diagnosis.examination import Examination
from zq2onnx.diagnosis.findings import Cause, Finding, Indices, as_indices, named, number, percent, verb

FEW = 0.05
"""Share of the rows or channels that count as few."""

_MOST = 0.5
_OFF = 0.2
"""Weights this far from the float ones by one factor are of a wrong scale: rounding errors cancel out."""
_UNLIKE = 0.9
"""Relative error of a row's weights that no number of bits makes: rounding everything to 0 is 1."""
_SHRUNK = 6.0
"""A weight is clipped if it lost this many times the row's median error, three times half a step: the error
of rounding is as often above its median as below, and never above half a step, which is twice that."""
_BEYOND = 1.02
"""It is also this many times what the row's largest code holds."""


def not_finite(seen: Examination) -> Finding | None:
    """Rows with NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(seen.rounded).all(axis=0))
    if not bad.size:
        return None
    sentence = f"{named('row', bad)} of the quantized weight {verb(bad)} not finite"
    return Finding(seen.layer.name, Cause.NOT_FINITE, sentence, 1.0, as_indices(bad))


def dead_rows(seen: Examination) -> Finding | None:
    """Rows whose weights are all the same in the quantized model alone, however little error they make."""
    spans = np.ptp(seen.rounded, axis=0)
    mine = np.ptp(seen.weight, axis=0)
    dead = np.flatnonzero((mine > 0) & (spans <= 1e-6 * np.abs(seen.weight).max(axis=0)))
    if not dead.size:
        return None
    share, order = _row_share(seen, dead)
    zero = not np.any(seen.rounded[:, dead])
    what = "all zero" if zero else "all the same number"
    sentence = (
        f"{named('row', order)} of the quantized weight {verb(dead)} {what}, "
        f"and not so in the float model: {percent(share)} of the layer's own error"
    )
    return Finding(seen.layer.name, Cause.DEAD_ROW, sentence, share, as_indices(order))


def clipped_range(seen: Examination) -> Finding | None:
    """Large weights that came out smaller by far more than half a step."""
    error = seen.rounded - seen.weight
    lost = -error * np.sign(seen.weight)
    usual = np.median(np.abs(error), axis=0)
    # Beyond what the row's codes hold: none of the codes is larger.
    largest = np.abs(seen.rounded).max(axis=0)
    clipped = (lost > _SHRUNK * usual) & (np.abs(seen.weight) > largest * _BEYOND) & (usual > 0)
    if not clipped.any():
        return None
    contributions = np.square(seen.x).sum(axis=0)[:, None] * np.square(error)
    by_row = np.where(clipped, contributions, 0).sum(axis=0)
    share = float(by_row.sum() / contributions.sum())
    order = np.argsort(-by_row)[: np.count_nonzero(clipped.any(axis=0))]
    worst = order[0]
    sentence = (
        f"{np.count_nonzero(clipped)} weights of {named('row', order)} are cut off: row {worst} reaches "
        f"{number(np.abs(seen.weight[:, worst]).max())} and its codes hold {number(largest[worst])}; "
        f"they make {percent(share)} of the layer's own error"
    )
    return Finding(seen.layer.name, Cause.CLIPPED_RANGE, sentence, share, as_indices(order))


def wrong_scale(seen: Examination) -> Finding | None:
    """Rows that are a multiple of the float ones, and little else."""
    squares = np.square(seen.weight).sum(axis=0)
    factor = np.divide(
        (seen.weight * seen.rounded).sum(axis=0), squares, out=np.ones_like(squares), where=squares > 0
    )
    rest = np.square(seen.rounded - factor * seen.weight).sum(axis=0)
    whole = np.square(seen.rounded - seen.weight).sum(axis=0)
    rows = np.flatnonzero((np.abs(factor - 1) >= _OFF) & (rest <= (1 - _MOST) * whole) & (factor != 0))
    if not rows.size:
        return None
    share, order = _row_share(seen, rows)
    everywhere = len(rows) > (1 - FEW) * len(factor)
    which = "the quantized weights" if everywhere else f"the quantized weights of {named('row', order)}"
    sentence = (
        f"{which} are {number(float(np.median(factor[rows])))} times the float ones: wrong scales; "
        f"{percent(share)} of the layer's own error"
    )
    return Finding(
        seen.layer.name, Cause.WRONG_SCALE, sentence, share, () if everywhere else as_indices(order)
    )


def unrelated(seen: Examination) -> Finding | None:
    """Rows that have nothing in common with the float ones."""
    norms = np.linalg.norm(seen.weight, axis=0)
    errors = np.linalg.norm(seen.rounded - seen.weight, axis=0)
    rows = np.flatnonzero((errors >= _UNLIKE * norms) & (norms > 0))
    if not rows.size:
        return None
    share, order = _row_share(seen, rows)
    everywhere = len(rows) > (1 - FEW) * len(norms)
    which = "the quantized weights" if everywhere else f"the quantized weights of {named('row', order)}"
    mine, theirs = seen.weight[:, rows].reshape(-1), seen.rounded[:, rows].reshape(-1)
    product = float(np.linalg.norm(mine) * np.linalg.norm(theirs))
    likeness = float(mine @ theirs) / product if product else 0.0
    sentence = (
        f"{which} have little in common with the float ones (correlation {likeness:.2f}, relative error "
        f"{number(float(np.linalg.norm(theirs - mine) / np.linalg.norm(mine)))}): corrupted, or of another "
        f"layer; {percent(share)} of the layer's own error"
    )
    return Finding(
        seen.layer.name, Cause.UNRELATED_WEIGHTS, sentence, share, () if everywhere else as_indices(order)
    )


def few_rows(seen: Examination) -> Finding | None:
    """Few rows with most of the error, for no other reason found."""
    energies = _row_energies(seen)
    order = np.argsort(-energies)
    count = max(1, int(FEW * len(order)))
    share = float(energies[order[:count]].sum() / energies.sum())
    if share < _MOST or len(order) < 2 * count:
        return None
    running = np.cumsum(energies[order]) / energies.sum()
    rows = order[: int(np.searchsorted(running, _MOST)) + 1]
    largest, median = np.abs(seen.weight[:, rows]).max(), np.median(np.abs(seen.weight[:, rows]))
    sentence = (
        f"{named('row', rows)} of its weight {'makes' if len(rows) == 1 else 'make'} "
        f"{percent(float(running[len(rows) - 1]))} of its own error; their largest weight is "
        f"{largest / max(float(median), 1e-30):.0f} times the median one, which makes the steps wide"
    )
    return Finding(seen.layer.name, Cause.FEW_ROWS, sentence, float(running[len(rows) - 1]), as_indices(rows))


def _row_energies(seen: Examination) -> npt.NDArray[np.float64]:
    """Energy that each row's weights add to the error, `[N]`."""
    made = seen.x @ (seen.rounded - seen.weight)
    energies: npt.NDArray[np.float64] = np.einsum("tn,tn->n", made, made, dtype=np.float64)
    return energies


def _row_share(seen: Examination, rows: Indices) -> tuple[float, Indices]:
    """Share of the error that rows make, and the rows, the worst first."""
    energies = _row_energies(seen)
    share = float(energies[rows].sum() / max(energies.sum(), 1e-300))
    return share, rows[np.argsort(-energies[rows])]
