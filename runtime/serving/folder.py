"""Finds the model in a folder that is deployed: its file, and the operator library that it brings along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zq2onnx.configuration import read_object
from zq2onnx.errors import UserError

GENAI_CONFIG = "genai_config.json"
MODEL = "model.onnx"
TOKENIZER = "tokenizer.onnx"
DETOKENIZER = "detokenizer.onnx"
"""What `zq2onnx package` calls its files."""


@dataclass(frozen=True)
class Deployed:
    """A model as it was deployed.

    Attributes:
        model: its ONNX file.
        settled: whether the folder says by which kernels it runs: by `library`'s, or by stock ones.
        library: the operator library in the folder; None where it brings none.
    """

    model: Path
    settled: bool = False
    library: Path | None = None


def find_model(path: Path) -> Deployed:
    """The model meant by an ONNX file, a folder of onnxruntime-genai, or a folder with one model.

    Raises:
        UserError: there is none, or what genai_config.json names is not there.
    """
    if path.is_file():
        return Deployed(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder", "an ONNX model, or the folder of one")
    config = read_object(path / GENAI_CONFIG)
    return _from_genai(path, config) if config else Deployed(_only_model(path))


def _from_genai(folder: Path, config: dict[str, object]) -> Deployed:
    decoder = _section(_section(config, "model"), "decoder")
    named, library = decoder.get("filename"), _section(decoder, "session_options").get("custom_ops_library")
    if not isinstance(named, str):
        raise UserError(f"{folder / GENAI_CONFIG}: it names no decoder", "model.decoder.filename")
    if library is not None and not isinstance(library, str):
        raise UserError(f"{folder / GENAI_CONFIG}: custom_ops_library is {library!r}", "the name of a file")
    for name in filter(None, (named, library)):
        _check_inside(folder, name)
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / GENAI_CONFIG}: it names {name}, which is not in {folder}",
                "the folder as it was packaged",
                "move or copy the whole folder, or package the model again",
            )
    if library and not (folder / library).resolve().is_relative_to(folder.resolve()):
        # Models may be links, as they are where a hub's client keeps them; what is executed may not.
        raise UserError(f"{folder / library} is a link to another folder", "the library in the folder itself")
    return Deployed(folder / named, True, folder / library if library else None)


def _check_inside(folder: Path, name: str) -> None:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(
            f"{folder / GENAI_CONFIG}: it names {name}", f"files in {folder}, relative to it", "correct it"
        )


def _section(config: dict[str, object], key: str) -> dict[str, object]:
    section = config.get(key)
    return section if isinstance(section, dict) else {}


def _only_model(folder: Path) -> Path:
    if (folder / MODEL).is_file():
        return folder / MODEL
    models = sorted(path for path in folder.glob("*.onnx") if path.name not in (TOKENIZER, DETOKENIZER))
    if len(models) != 1:
        found = f"{len(models)} models, {models[0].name} for one" if models else "no ONNX model"
        raise UserError(f"{folder}: {found}", f"one, or {MODEL} among them", "name the model's file")
    return models[0]
