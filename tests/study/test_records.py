"""Studies and records as JSON: what is written is read back, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tests.study.made import SENSITIVITY, result, study
from zq2onnx.study.records import (
    cell_result,
    from_json,
    read_header,
    read_record,
    to_json,
    write_record,
)
from zq2onnx.study.results import Cell, CellFailure, CellResult, LayerError, Study

finite = st.floats(allow_nan=False, allow_infinity=False)
results = st.builds(
    CellResult,
    cell=st.builds(Cell, st.text(), st.text(), st.text(), st.integers()),
    bytes=st.integers(),
    bits_per_weight=finite,
    perplexity=st.dictionaries(st.text(), finite),
    mean=finite,
    gap=finite,
    kl=finite,
    top1=finite,
    seconds=finite,
    layers=st.lists(st.builds(LayerError, st.text(), finite, finite)).map(tuple),
)


@given(results)
def test_a_result_comes_back_bit_for_bit(given: CellResult) -> None:
    assert cell_result(json.loads(json.dumps(dataclasses.asdict(given)))) == given


def test_a_study_comes_back_equal() -> None:
    failure = CellFailure(Cell("gptq", "w2a16", "row", 8), 'disk "full" | é')
    made = study(
        result("gptq", rank=8, gap=0.1 + 0.2),
        result(),
        failures=(failure,),
        sensitivity=(SENSITIVITY,),
        tokenizer="tok",
        windows=40,
        calib_samples=128,
        calib_length=256,
        warnings=("a", "b"),
    )
    again = from_json(to_json(made))
    assert again == made
    # Equality of dataclasses does not tell an int from a float, nor a field that was left out.
    assert to_json(again) == to_json(made)
    assert {field.name for field in dataclasses.fields(Study)} == json.loads(to_json(made)).keys()


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(study(result(kl=float("nan"))))


def test_a_record_is_read_under_its_own_header_only(tmp_path: Path) -> None:
    file = tmp_path / "cell.json"
    header = {"model": "abc", "options": {"lorc-rank": 8, "only": ()}}
    assert read_record(file, header) is None and read_header(file) is None
    write_record(file, header, {"kl": 0.1})
    assert read_record(file, header) == {"kl": 0.1}
    assert read_header(file) == {"model": "abc", "options": {"lorc-rank": 8, "only": []}}
    assert read_record(file, {**header, "options": {"lorc-rank": 0, "only": ()}}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["cell.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"header": 1}', '{"header": 1, "result": 2, "x": 3}']
)
def test_a_file_that_is_no_record_is_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "cell.json"
    file.write_text(content)
    assert read_record(file, 1) is None  # type: ignore[arg-type]
    assert read_header(file) is None


def test_a_file_of_bytes_that_are_no_text_is_none(tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_bytes(b"\xff\xfe\x00")
    assert read_header(tmp_path / "cell.json") is None
