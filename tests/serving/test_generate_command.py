"""`zq2onnx generate`: what it prints, and what it says of bad input."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import zoo
from tests.runtime.fused import needs_library
from tests.serving.engines import PROMPTS, as_batch, by_generator, encoded, packaged, tokenizer
from zq2onnx.cli.app import main
from zq2onnx.errors import UserError
from zq2onnx.runtime.providers import require_onnxruntime
from zq2onnx.runtime.serving import Generator, read_settings
from zq2onnx.runtime.serving.opening import cache_device
from zq2onnx.runtime.serving.signature import read_signature

COUNT = "16"
CONTEXT, VOCABULARY = 256, 4096  # of the bundled model


@pytest.fixture(scope="module")
def model() -> Path:
    return zoo.model("tiny-cache")


@pytest.fixture(scope="module")
def texts(model: Path) -> list[str]:
    """What is printed for the first three prompts."""
    ids = by_generator(Generator(model, threads=1), encoded(model.parent, PROMPTS[:3]), int(COUNT))
    return [tokenizer(model.parent).decode(text) for text in ids]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a command ends with."""
    code = main(["generate", *map(str, arguments)])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


def test_prints_the_text_and_how_fast_it_came(
    model: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model), "--prompt", PROMPTS[0], "--max-new-tokens", COUNT]) == 0
    printed = capsys.readouterr()
    assert printed.out == texts[0] + "\n" and " the world." in texts[0]
    assert "tokens of prompt in" in printed.err and "tokens/s; 16 tokens in all" in printed.err


def test_without_files_it_says_that_it_never_stops(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.onnx", "model.onnx.data", "tokenizer.json"):
        shutil.copy(model.parent / name, tmp_path)
    arguments = ["generate", str(tmp_path), "--prompt", "a", "--max-new-tokens", "3"]
    assert main(arguments) == 0
    note, speed = capsys.readouterr().err.splitlines()
    assert "names a token that ends a text: 3 come of each" in note and "tokens in all" in speed
    assert main([*arguments, "--quiet"]) == 0 and capsys.readouterr().err == ""
    assert main(["generate", str(model), *arguments[2:]]) == 0
    assert "names a token" not in capsys.readouterr().err


def test_a_terminal_that_lacks_a_letter(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    prompts = ["--prompt", "é", "--prompt", "a"]
    assert main(["generate", str(model), *prompts, "--max-new-tokens", "2", "--quiet"]) == 0
    assert raw.getvalue().startswith(b"[?]")


@pytest.mark.parametrize("told", [True, False])
def test_an_interrupted_import_is_no_missing_package(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        if told:
            raise ImportError("initialization failed: KeyboardInterrupt")
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("zq2onnx.runtime.providers.importlib.import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        require_onnxruntime()


def test_several_prompts_are_one_batch(
    model: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [part for prompt in PROMPTS[:3] for part in ("--prompt", prompt)]
    assert main(["generate", str(model), *prompts, "--max-new-tokens", COUNT, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for prompt, text in zip(PROMPTS, texts, strict=False):
        assert f"[{prompt}]{text}\n" in printed.out


def test_a_genai_folder_may_be_moved(
    model: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = packaged(model, tmp_path / "made")
    shutil.move(folder, tmp_path / "moved")
    arguments = ["--prompt", PROMPTS[1], "--max-new-tokens", COUNT]
    assert main(["generate", str(tmp_path / "moved"), *arguments]) == 0
    assert capsys.readouterr().out == texts[1] + "\n"
    (tmp_path / "moved" / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    line = refused(capsys, tmp_path / "moved", *arguments)
    assert "names model.onnx, which is not in" in line and "move or copy the whole folder" in line


def test_stops_at_the_end_of_a_text(model: Path, tmp_path: Path) -> None:
    generator = Generator(model, threads=1)
    (prompt,) = encoded(model.parent, PROMPTS[:1])
    (whole,) = by_generator(generator, [prompt], 16)
    end = whole[5]
    stopped = [token for (token,) in generator.stream([prompt], 16, stop=[end])]
    assert stopped == whole[: whole.index(end) + 1]
    shorter = list(generator.stream([prompt, prompt[:-1]], 16, stop=[end]))
    assert [first for first, _ in shorter][: len(stopped)] == stopped
    assert all(first is None for first, _ in shorter[len(stopped) :])


def test_what_files_say_of_the_end(tmp_path: Path) -> None:
    def said(**files: object) -> tuple[tuple[int, ...], int | None, int | None]:
        for path in tmp_path.iterdir():
            path.unlink()
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        settings = read_settings(tmp_path)
        return settings.eos, settings.pad, settings.context

    assert said() == ((), None, None)
    config = {"eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64}
    assert said(config=config) == ((2,), 0, 64)
    assert said(config={"text_config": config}) == ((2,), 0, 64)
    lists = {"eos_token_id": [5, 6], "pad_token_id": None}
    assert said(config=config, generation_config=lists) == ((5, 6), 0, 64)
    genai = {"model": {"eos_token_id": 7, "context_length": 32}}
    assert said(config=config, generation_config=lists, genai_config=genai) == ((7,), 0, 32)
    assert said(config={"eos_token_id": None, "pad_token_id": -1}) == ((), None, None)


def test_bad_input_is_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("--prompt", "a")
    assert "no such file or folder" in refused(capsys, tmp_path / "absent", *ask)
    assert "no ONNX model; required: one" in refused(capsys, tmp_path, *ask)
    assert "a graph without key-value cache" in refused(capsys, zoo.model("llama"), *ask)
    assert "no output logits" in refused(capsys, zoo.model("bert"), *ask)
    assert "a prompt of 0 tokens" in refused(capsys, model, "--prompt", "")
    assert "no such file; required: a tokenizer.json" in refused(
        capsys, model, *ask, "--tokenizer", tmp_path / "absent"
    )
    line = refused(capsys, model, *ask, "--max-new-tokens", str(CONTEXT))
    assert f"at most {CONTEXT} together" in line and f"ask for at most {CONTEXT - 1} new tokens" in line
    line = refused(capsys, model, "--prompt", "day " * CONTEXT)
    assert "shorten the prompt" in line
    assert "0 new tokens; required: at least 1" in refused(capsys, model, *ask, "--max-new-tokens", "0")
    assert "'\\udcff': not UTF-8; required: a UTF-8 text" in refused(capsys, model, "--prompt", "\udcff")
    assert "'--threads'" in refused(capsys, model, *ask, "--threads", "-5")
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"no model")
    assert "cannot load it" in refused(capsys, junk, *ask, "--tokenizer", model.parent)


def test_logits_are_of_texts_within_the_context(model: Path) -> None:
    generator = Generator(model, threads=1)
    assert generator.logits([[5] * CONTEXT]).shape == (1, CONTEXT, VOCABULARY)
    with pytest.raises(UserError, match="a prompt of 257 tokens and 0 new ones; required: at most 256"):
        generator.logits([[5] * (CONTEXT + 1)])


def test_what_fills_up_is_a_token_that_the_model_knows(model: Path, tmp_path: Path) -> None:
    folder = packaged(model, tmp_path / "served")
    said = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    said["model"]["pad_token_id"] = VOCABULARY
    (folder / "genai_config.json").write_text(json.dumps(said), encoding="utf-8")
    generator, prompts = Generator(folder, threads=1), encoded(folder, PROMPTS[:2])
    assert generator.settings.pad == VOCABULARY
    assert as_batch(generator, prompts, 8) == by_generator(Generator(model, threads=1), prompts, 8)
    with pytest.raises(UserError, match="a prompt with id -1, and "):
        generator.stream([[5, -1]], 1)


def test_the_cache_is_on_the_sessions_own_gpu() -> None:
    @dataclass
    class Session:
        options: dict[str, dict[str, str]]

        def get_providers(self) -> list[str]:
            return list(self.options)

        def get_provider_options(self) -> dict[str, dict[str, str]]:
            return self.options

    cpu: dict[str, dict[str, str]] = {"CPUExecutionProvider": {}}
    assert cache_device(Session(cpu)) == ("cpu", 0)
    assert cache_device(Session({"CUDAExecutionProvider": {"device_id": "1"}} | cpu)) == ("cuda", 1)


def test_a_tokenizer_of_another_model_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match=f"id {VOCABULARY}, and .* knows {VOCABULARY} tokens"):
        Generator(model, threads=1).stream([[VOCABULARY]], 1)


@dataclass(frozen=True)
class Value:
    """An input or output, as ONNX Runtime describes it."""

    name: str
    type: str
    shape: Sequence[int | str | None]


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        ("bfloat16", ["b", 2, "past", 8], "its cache is bfloat16; required: float32 or float16"),
        ("int8", ["b", 2, "past", 8], "input past_key_values.0.key is tensor"),
        ("float", ["b", "heads", "past", 8], "with a past that may be empty"),
        ("float", ["b", 2, 16, 8], "with a past that may be empty"),
        ("float", ["b", "past", 16], "with a past that may be empty"),
    ],
)
def test_a_cache_that_it_cannot_feed_is_refused(kind: str, shape: list[int | str | None], said: str) -> None:
    key = Value("past_key_values.0.key", f"tensor({kind})", shape)
    inputs = [Value("input_ids", "tensor(int64)", ["b", "s"]), key]
    outputs = [Value(name, "tensor(float)", ["b", "s", 10]) for name in ("logits", "present.0.key")]
    with pytest.raises(UserError, match=said):
        read_signature(Path("m.onnx"), inputs, outputs).check_types(Path("m.onnx"))
    with pytest.raises(UserError, match="and no output present.0.key"):
        read_signature(Path("m.onnx"), inputs, outputs[:1])


def test_interrupted_it_keeps_what_was_printed(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> Iterator[tuple[int]]:
        yield from [(40,), (41,)]
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "stream", interrupted)
    assert main(["generate", str(model), "--prompt", "a"]) == 130
    printed = capsys.readouterr()
    assert printed.out == tokenizer(model.parent).decode([40, 41]) + "\n"
    assert printed.err.strip() == "interrupted"


@needs_library
def test_fused_needs_the_library(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model), "--prompt", "a", "--max-new-tokens", "1", "--fused"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("zq2onnx.runtime.library.library_folder", lambda: tmp_path)
    assert "the operator library is not built" in refused(capsys, model, "--prompt", "a", "--fused")
    assert main(["generate", str(model), "--prompt", "a", "--max-new-tokens", "1"]) == 0


BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"onnx", "onnx_ir", "torch", "transformers", "tokenizers", "typer"}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from zq2onnx.runtime.serving import Generator
print([token for (token,) in Generator(sys.argv[1], threads=1).stream([[5, 6, 7]], 4)])
"""


def test_a_deployment_host_needs_numpy_and_onnxruntime_alone(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(model)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == by_generator(Generator(model, threads=1), [[5, 6, 7]], 4)[0]
