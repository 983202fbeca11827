"""`package()`: what each serving stack wants in its folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.packaging import genai, snippets, triton
from zq2onnx.packaging.contents import Contents
from zq2onnx.packaging.kernels import LIBRARY, add_library, choose_library
from zq2onnx.packaging.source import Source, read_source
from zq2onnx.packaging.target import Target
from zq2onnx.runtime.serving.folder import DETOKENIZER, GENAI_CONFIG, MODEL, TOKENIZER
from zq2onnx.storage.companions import find_companions
from zq2onnx.text import read_tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_MODEL_FILES = ("config.json", "generation_config.json", "preprocessor_config.json")
_DEFAULT_BATCH = 8


@dataclass(frozen=True)
class Package:
    """What `package` made.

    Attributes:
        folder: where.
        files: paths in it.
        bytes: size of all of them.
        fused: whether the operator library is among them.
        name: what Triton calls the model; None for the other targets.
    """

    folder: Path
    files: tuple[Path, ...]
    bytes: int
    fused: bool
    name: str | None


@dataclass(frozen=True)
class Wishes:
    """What may be asked of a package beyond its target.

    Attributes:
        tokenizer: a tokenizer.json, or its folder; None for the model's.
        tokenizer_graph: whether tokenizer and detokenizer come along as ONNX graphs.
        context: for genai, tokens of the longest text; None for what the model's files say.
        name: for Triton, what the model is called; None for its file's name.
        max_batch: for Triton, sequences to a run; None for the default.
        library_path: for Triton, where the server finds the library; None for its place in the repository.
    """

    tokenizer: Path | None = None
    tokenizer_graph: bool = False
    context: int | None = None
    name: str | None = None
    max_batch: int | None = None
    library_path: str | None = None


def package(
    model: Path,
    target: Target,
    folder: Path,
    *,
    fused: bool | None = None,
    wishes: Wishes = Wishes(),
    force: bool = False,
    link: bool = False,
) -> Package:
    """Make a folder that a serving stack opens as it is.

    Args:
        model: an ONNX model, with what it needs beside it.
        target: what will open the folder.
        folder: made where it is missing; its parent must exist.
        fused: with the operator library; False: without. None: with it where it is built and the model has
            operators for it.
        wishes: what else; None for nothing.
        force: use a folder that is not empty: overwrite files of the same names, and remove what an earlier
            package had and this one has not.
        link: make hard links of the weights instead of copies.

    Raises:
        UserError: the model does not fit the target, something is missing, or the folder is taken.
    """
    source, wishes = read_source(model), wishes or Wishes()
    library = choose_library(source, fused)
    name = _name(source, wishes) if target is Target.TRITON else None
    if name is not None:
        contents = _triton(source, library, name, wishes)
    elif target is Target.GENAI:
        contents = _genai(source, library, wishes)
    else:
        contents = _ort(source, library, wishes)
    contents.check(folder, force)
    contents.put(folder, link)
    size = sum((folder / file).stat().st_size for file in contents.files)
    return Package(folder, tuple(contents.files), size, library is not None, name)


def _genai(source: Source, library: Path | None, wishes: Wishes) -> Contents:
    config = genai.genai_config(source, library, wishes.context)
    contents = Contents()
    _add_model(contents, source, Path())
    _add_tokenizer(contents, source, wishes, Path(), required=True)
    add_library(contents, library)
    contents.write(GENAI_CONFIG, config)
    contents.opened = [Path(MODEL), Path(GENAI_CONFIG)]
    contents.ours |= {Path(snippets.PYTHON), Path(snippets.CPP)}
    return contents


def _ort(source: Source, library: Path | None, wishes: Wishes) -> Contents:
    contents = Contents()
    _add_model(contents, source, Path())
    _add_tokenizer(contents, source, wishes, Path(), required=False)
    add_library(contents, library)
    contents.write(snippets.PYTHON, snippets.python_snippet(source, library is not None))
    contents.write(snippets.CPP, snippets.cpp_snippet(source, library is not None))
    contents.opened = [Path(MODEL)]
    contents.ours.add(Path(GENAI_CONFIG))
    return contents


def _triton(source: Source, library: Path | None, name: str, wishes: Wishes) -> Contents:
    triton.check_library_path(wishes.library_path)
    version, contents = Path(name, triton.VERSION), Contents()
    batch = _max_batch(source, wishes)
    path = wishes.library_path or f"{triton.MOUNT}/{(version / LIBRARY).as_posix()}"
    if wishes.library_path and library is None:
        raise UserError(
            f"--library-path {path}, and no library goes with {source.model}",
            "a model with operators for it, not --portable",
            "leave it out",
        )
    named = path if library is not None else None
    _add_model(contents, source, version)
    _add_tokenizer(contents, source, wishes, Path(name, "tokenizer"), required=False)
    add_library(contents, library, version)
    contents.write(Path(name, "config.pbtxt"), triton.model_config(source, name, batch, named))
    contents.write(Path(name, "request.json"), triton.example_request(source))
    contents.write("README.md", triton.readme(source, name, named, batch > 0))
    contents.opened = [version / MODEL, Path(name, "config.pbtxt")]
    return contents


def _max_batch(source: Source, wishes: Wishes) -> int:
    possible = triton.batches(source)
    if wishes.max_batch and not possible:
        raise UserError(
            f"--max-batch-size {wishes.max_batch}, and {source.model} has an input or output without a free"
            " first dimension",
            "0, by which requests are not merged",
        )
    return (_DEFAULT_BATCH if wishes.max_batch is None else wishes.max_batch) if possible else 0


def _name(source: Source, wishes: Wishes) -> str:
    name = wishes.name or re.sub(r"[^\w-]+", "_", source.model.stem, flags=re.ASCII)
    if not re.fullmatch(r"[\w.-]+", name, flags=re.ASCII) or name.startswith("."):
        raise UserError(f"--name {name!r}", "letters, digits, and _ - . within")
    return name


def _add_model(contents: Contents, source: Source, place: Path) -> None:
    contents.copied[place / MODEL] = source.model
    contents.weights.add(place / MODEL)
    for location in source.data:
        contents.copied[place / location] = source.folder / location
        contents.weights.add(place / location)


def _add_tokenizer(contents: Contents, source: Source, wishes: Wishes, place: Path, required: bool) -> None:
    """The files beside the model, another tokenizer's in place of its own, and the graphs."""
    named = wishes.tokenizer
    if named is not None and not named.exists():
        raise UserError(f"--tokenizer {named}: no such file or folder", "a tokenizer.json, or its folder")
    other = named.parent if named is not None and named.is_file() else named
    contents.ours |= {place / TOKENIZER, place / DETOKENIZER}
    for file in find_companions(source.folder):
        if file.name != GENAI_CONFIG and (other is None or file.name in _MODEL_FILES):
            contents.copied[place / file] = source.folder / file
    if other is not None:
        for file in find_companions(other):
            if file.name not in (GENAI_CONFIG, *_MODEL_FILES):
                contents.copied[place / file] = other / file
    file = place / _TOKENIZER_FILES[0]
    if named is not None and named.is_file():
        contents.copied[file] = named
    absent = [name for name in _TOKENIZER_FILES if place / name not in contents.copied]
    if absent and (required or wishes.tokenizer_graph):
        raise UserError(
            f"{other or source.folder}: no {absent[0]}",
            "the model's tokenizer",
            "give its folder with --tokenizer",
        )
    if file in contents.copied:
        read_tokenizer(contents.copied[file])  # refuses one that is damaged
    if wishes.tokenizer_graph:
        from zq2onnx.packaging.tokenizer_graph import make_tokenizer_graphs

        files = [contents.copied[place / name] for name in _TOKENIZER_FILES]
        encoder, decoder = make_tokenizer_graphs(*files)
        contents.written[place / TOKENIZER] = encoder
        contents.written[place / DETOKENIZER] = decoder
