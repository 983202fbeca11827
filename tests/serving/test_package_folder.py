"""`zq2onnx package`: how files come into a folder, new or not, and what goes from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runtime.cuda.stand_in import write_bundle
from tests.runtime.fused import needs_library
from tests.serving.packaging import make, refused
from zq2onnx.cli.app import main
from zq2onnx.packaging.kernels import LIBRARY


@needs_library
def test_kernels_come_along_where_they_are_compiled(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    named = {kernel.file for kernel in write_bundle(bundle, "sm_90").kernels}
    (bundle / "of-another-build.cubin").write_text("left over")
    monkeypatch.setenv("ZQ2ONNX_KERNELS", str(bundle))
    assert make(quantized, "-o", tmp_path / "served", "--fused") == 0
    kernels = tmp_path / "served" / "kernels"
    assert {path.name for path in kernels.iterdir()} == {"manifest.json", *named}
    size = sum(path.stat().st_size for path in kernels.iterdir()) / 1e6
    printed = capsys.readouterr().out
    assert f"  kernels/  {len(named) + 1} files, {size:.1f} MB\n" in printed and "cubin" not in printed


def test_weights_are_linked_where_that_is_asked_for(
    float_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(float_model.parent, source)
    assert make(source / "model.onnx", "-o", tmp_path / "served", "--link", "--quiet") == 0
    assert (tmp_path / "served" / "model.onnx.data").samefile(source / "model.onnx.data")
    assert not (tmp_path / "served" / "config.json").samefile(source / "config.json")
    out = ("-o", tmp_path / "served", "--quiet")
    assert "is not empty" in refused(capsys, source / "model.onnx", *out)
    assert make(source / "model.onnx", *out, "--link", "--force") == 0
    assert (tmp_path / "served" / "model.onnx.data").samefile(source / "model.onnx.data")
    assert make(source / "model.onnx", *out, "--force") == 0
    for name in ("model.onnx", "model.onnx.data"):
        assert not (tmp_path / "served" / name).samefile(source / name)
        assert (tmp_path / "served" / name).read_bytes() == (float_model.parent / name).read_bytes()
    assert "is what is packaged" in refused(
        capsys, tmp_path / "served" / "model.onnx", *out, "--force", "--link"
    )


def test_a_folder_is_not_taken_unasked(
    float_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "model.onnx").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    assert "is not empty" in refused(capsys, float_model, "-o", folder)
    assert (folder / "model.onnx").read_text() == "mine"
    assert make(float_model, "-o", folder, "--force") == 0
    assert (folder / "model.onnx").read_bytes() == float_model.read_bytes()
    assert (folder / "notes.txt").read_text() == "mine"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@needs_library
def test_another_package_in_its_place_leaves_nothing_of_the_first(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "bundle", "sm_90")
    monkeypatch.setenv("ZQ2ONNX_KERNELS", str(tmp_path / "bundle"))
    folder, fresh = tmp_path / "served", tmp_path / "fresh"
    assert main(["package", str(quantized), "--for", "ort", "-o", str(folder), "--fused", "--quiet"]) == 0
    (folder / "tokenizer.onnx").write_text("of --with-tokenizer-graph")
    (folder / "notes.txt").write_text("mine")
    assert {"kernels", LIBRARY, "run.py"} <= {path.name for path in folder.iterdir()}
    for to, force in ((fresh, ()), (folder, ("--force",))):
        assert make(quantized, "-o", to, "--portable", "--quiet", *force) == 0
    names = {path.name for path in fresh.iterdir()}
    assert {path.name for path in folder.iterdir()} == {*names, "notes.txt"}


def test_a_folder_of_the_users_own_loses_nothing(float_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    (folder / "kernels").mkdir(parents=True)
    mine = [folder / name for name in ("run.py", "kernels/manifest.json")]
    for path in mine:
        path.write_text("mine")
    assert make(float_model, "-o", folder, "--force", "--quiet") == 0
    assert [path.read_text() for path in mine] == ["mine", "mine"]


def test_what_is_opened_is_never_of_two_packages(
    float_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "served"
    assert make(float_model, "-o", folder, "--quiet") == 0
    opened = ("model.onnx", "genai_config.json")
    seen = []

    def watched(source: Path, target: Path) -> None:
        seen.append((target.name, [name for name in opened if (folder / name).exists()]))
        source.rename(target)

    monkeypatch.setattr("zq2onnx.packaging.contents.os.replace", watched)
    assert make(float_model, "-o", folder, "--force", "--quiet") == 0
    *others, model, config = seen
    assert ("model.onnx.data", []) in others and all(there == [] for _, there in others)
    assert (model, config) == (("model.onnx", []), ("genai_config.json", ["model.onnx"]))


def test_what_is_in_the_way_is_said_before_anything_is_touched(
    float_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "served"
    assert make(float_model, "-o", folder, "--quiet") == 0
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert "config.json is a folder" in refused(capsys, float_model, "-o", folder, "--force")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "chat").write_text("mine")
    arguments = ["--for", "triton", "-o", str(repository), "--name", "chat", "--force"]
    assert main(["package", str(float_model), *arguments]) == 2
    assert "chat is no folder" in capsys.readouterr().err and (repository / "chat").read_text() == "mine"
