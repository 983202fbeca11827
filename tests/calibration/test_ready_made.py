"""Arrays are fed as they are, or one clear line says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.calibration.desk import IDS, WORDS, Desk, fed, language_model
from zq2onnx.errors import UserError


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_arrays_are_fed_as_they_are(desk: Desk) -> None:
    x = np.random.default_rng(0).standard_normal((5, 7, 4)).astype(np.float32)
    model = language_model("float[b, s, 4] x, float16[b] h", "e = Relu(x)")
    samples = desk.load(model, desk.archive(x=x, h=np.zeros(5, np.float32)), tokenizer=None, samples=4)
    np.testing.assert_array_equal(fed(samples, "x"), x[:4])
    assert samples.tokens == 4
    assert sum(samples.held_out) == 1


IDS_3 = np.zeros((2, 3), np.int64)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "strange": (
        {"y": np.zeros((2, 2))},
        "y, which the model does not read; .*attention_mask, input_ids",
    ),
    "missing": ({"attention_mask": None}, "a.npz: no attention_mask; "),
    "dtype": ({"input_ids": np.zeros((2, 3), np.int32)}, "a.npz: input_ids is int32; required: int64"),
    "rank": (
        {"input_ids": np.zeros((2, 3, 1), np.int64)},
        r"is of shape \[2, 3, 1\]; required: \[samples, s\]",
    ),
    "size": ({"attention_mask": np.zeros((2, 4), np.int64)}, r"of shape \[2, 4\]; required: \[samples, 3\]"),
    "scalar": ({"input_ids": np.int64(3)}, r"is of shape \[\]"),
    "counts": ({"input_ids": np.zeros((4, 3), np.int64)}, "4 of input_ids, 2 of attention_mask; .*as many"),
    "objects": ({"input_ids": np.array([[None]])}, "a.npz: cannot be read .*Object arrays"),
    "ids": ({"input_ids": np.full((2, 3), WORDS)}, f"input_ids from 50 to 50, and .* knows {WORDS} tokens"),
    "negative": ({"input_ids": np.full((2, 3), -1)}, "input_ids from -1 to -1"),
    "none": (
        {"input_ids": np.zeros((0, 3), np.int64), "attention_mask": np.zeros((0, 3), np.int64)},
        "no samples",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_arrays_that_do_not_fit_are_named(desk: Desk, fault: str) -> None:
    changes, message = WRONG[fault]
    good = {"input_ids": IDS_3, "attention_mask": np.ones_like(IDS_3)}
    model = language_model(f"{IDS}, int64[b, 3] attention_mask")
    assert desk.load(model, desk.archive(**good)).tokens == 6
    arrays = {name: array for name, array in {**good, **changes}.items() if array is not None}
    with pytest.raises(UserError, match=message) as error:
        desk.load(model, desk.archive(**arrays))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 nothing"])
def test_an_unreadable_archive_is_named(desk: Desk, content: bytes) -> None:
    (desk.folder / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a.npz: cannot be read \(.*\); required: arrays of numbers"):
        desk.load(calib=desk.folder / "a.npz")


def test_a_single_array_is_no_archive(desk: Desk) -> None:
    np.save(desk.folder / "a.npy", np.zeros((2, 3)))
    (desk.folder / "a.npy").rename(desk.folder / "a.npz")
    with pytest.raises(UserError, match=r"a.npz: one array, not an archive"):
        desk.load(calib=desk.folder / "a.npz")


def test_a_damaged_archive_is_named(desk: Desk) -> None:
    archive = desk.archive(input_ids=np.arange(9000).reshape(30, 300) % WORDS)
    data = bytearray(archive.read_bytes())
    data[2000] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"a.npz: cannot be read"):
        desk.load(calib=archive)
