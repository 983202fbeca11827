"""`--profile`, `--dtype` and `--bias`: what is chosen and told, and what the files then are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import zq2onnx
from tests import zoo
from tests.convert import linear_model
from tests.convert.converting import convert, metadata
from zq2onnx.cli.app import main
from zq2onnx.conversion.choices import Choices
from zq2onnx.conversion.options import resolve
from zq2onnx.errors import UserError
from zq2onnx.scheme import BiasPlace, FloatType, PerBlock

CACHED = ("opt-cache", "llama-cache")


@pytest.mark.parametrize("name", ["opt", "llama", *CACHED])
def test_ort_cuda_is_float16_and_near_the_float_model(name: str, tmp_path: Path) -> None:
    path, output = zoo.model(name), tmp_path / "q.onnx"
    check = "sample" if name in CACHED else "full"  # no batch can be made up for these exports with a past
    report = convert(path, output, profile="ort-cuda", scheme="w8a16", check=check)
    assert report.check is not None and report.check.nodes_checked > 0
    model = onnx.load(output)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    ends = (*model.graph.input, *model.graph.output)
    assert {each.type.tensor_type.elem_type for each in ends} == {TensorProto.INT64, TensorProto.FLOAT16}
    feeds = zoo.feeds(path, length=6, past=3) if name in CACHED else zoo.feeds(path, length=20)
    halves = {
        key: each.astype(np.float16) if each.dtype == np.float32 else each for key, each in feeds.items()
    }
    convert(path, tmp_path / "f.onnx", profile="ort-cuda", scheme="w8a16", dtype="fp32")
    quantized, floats = zoo.run(tmp_path / "f.onnx", feeds), zoo.run(path, feeds)
    for got, same, expected in zip(zoo.run(output, halves), quantized, floats, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, same, rtol=0, atol=0.03 * np.abs(expected).max())
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.05 * np.abs(expected).max())


def test_ort_cuda_is_symmetric_in_blocks_of_32_with_the_bias_outside(tmp_path: Path) -> None:
    report = convert(zoo.model("opt"), tmp_path / "q.onnx", profile="ort-cuda")
    (warning,) = report.warnings
    assert "12 of 12 nodes have an output width that is no multiple of 64 (the first has 96)" in warning
    model = onnx.load(tmp_path / "q.onnx")
    nodes = [node for node in model.graph.node if node.domain == "ai.zq2onnx"]
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    readers = {name: node for node in model.graph.node for name in node.input}
    for node in nodes:
        sizes = {each.name: each.i for each in node.attribute}
        assert sizes["block_size"] == 32 and node.input[4] == ""
        assert constants[node.input[2]].dtype == np.float16
        assert np.isin(constants[node.input[3]], [0x88, 0x08]).all()  # a row of an odd number of blocks
        add = readers[node.output[0]]
        assert add.op_type == "Add" and any(name.endswith("bias") for name in add.input)
    inside = convert(zoo.model("opt"), tmp_path / "i.onnx", profile="ort-cuda", bias="inside")
    model = onnx.load(inside.output)
    assert all(node.input[4] for node in model.graph.node if node.domain == "ai.zq2onnx")


def test_blocks_that_no_stock_kernel_takes_are_told(tiny_model: Path, tmp_path: Path) -> None:
    model = tiny_model / "model.onnx"
    report = convert(model, tmp_path / "q.onnx", profile="ort-cuda", group_size="row", lorc_rank=0)
    assert report.warnings == [
        "profile ort-cuda: 24 of 24 nodes have blocks of more than 128: stock kernels for one token do not"
        " take them; choose a smaller --group-size"
    ]


def test_what_the_profile_chose_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    recipe, report = tmp_path / "r.toml", tmp_path / "r.json"
    recipe.write_text('profile = "ort-cuda"\nsymmetric = false\ngroup-size = 64\n')
    arguments = [str(model), "--recipe", str(recipe), "--group-size", "16", "--report", str(report)]
    assert main(["convert", *arguments, "--check", "none"]) == 0
    line = "profile ort-cuda: dtype fp16, target portable, bias outside (what ONNX Runtime's own CUDA kernels"
    assert [each.startswith(line) for each in capsys.readouterr().out.splitlines()].count(True) == 1
    said = json.loads(report.read_text())
    assert said["profile"]["name"] == "ort-cuda"
    assert said["profile"]["chosen"] == {"dtype": "fp16", "target": "portable", "bias": "outside"}
    assert (said["scheme"]["group-size"], said["scheme"]["symmetric"]) == ("16", False)
    written = json.loads(metadata(tmp_path / "m.w4a16.onnx")["zq2onnx.options"])
    assert (written["profile"], written["dtype"], written["bias"]) == ("ort-cuda", "fp16", "outside")
    assert convert(model, tmp_path / "plain.onnx").profile is None


def test_the_command_line_s_profile_wins_over_the_recipe_s(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('profile = "ort-cuda"\n[[node]]\nmatch = "a"\ngroup-size = 16\n')
    cuda, cpu = resolve(Choices(), recipe), resolve(Choices(profile="ort-cpu"), recipe)
    assert (cuda.dtype, cuda.bias, cuda.policy.scheme.granularity) == (
        FloatType.FP16,
        BiasPlace.OUTSIDE,
        PerBlock(32),
    )
    assert (cpu.dtype, cpu.bias, cpu.policy.scheme.granularity) == (
        FloatType.FP32,
        BiasPlace.INSIDE,
        PerBlock(128),
    )
    assert cuda.schemes[1].granularity == PerBlock(16)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--profile", "cuda"], "unknown profile 'cuda'; required: one of ort-cpu, ort-cuda, genai, triton"),
        (["--dtype", "fp8"], "unknown float type 'fp8'; required: one of keep, fp32, fp16, bf16"),
        (["--bias", "left"], "unknown place of the bias 'left'; required: one of inside, outside"),
        (["--profile", "triton", "--target", "qdq"], "target qdq with profile triton: its float activations"),
    ],
)
def test_refused_in_one_line(
    arguments: list[str], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    before = linear_model.files(tmp_path)
    assert main(["convert", str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {found}") and error.count("\n") == 1
    assert linear_model.files(tmp_path) == before


def test_a_recipe_s_unknown_profile_names_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('profile = "gpu"')
    with pytest.raises(UserError, match=r"r\.toml: unknown profile 'gpu'"):
        resolve(Choices(profile="genai"), recipe)


def test_genai_tells_what_is_missing(tmp_path: Path) -> None:
    source = tmp_path / "in" / "model.onnx"
    source.parent.mkdir()
    linear_model.write(source)
    report = convert(source, tmp_path / "a" / "model.onnx", profile="genai")
    assert [warning.partition(": ")[2] for warning in report.warnings] == [
        "the model has no KV cache among its inputs, which onnxruntime-genai needs",
        "onnxruntime-genai needs a genai_config.json beside model.onnx",
    ]
    config = source.with_name("genai_config.json")
    config.write_text(json.dumps({"model": {"decoder": {"filename": "model.onnx"}}}))
    report = convert(source, tmp_path / "b" / "q.onnx", profile="genai")
    named = tmp_path / "b" / "genai_config.json"
    assert (
        report.warnings[1]
        == f"profile genai: {named} names model.onnx, not q.onnx: set model.decoder.filename"
    )
    report = convert(zoo.model("opt-cache"), tmp_path / "c" / "model.onnx", profile="genai")
    assert report.warnings == ["profile genai: onnxruntime-genai needs a genai_config.json beside model.onnx"]
    values = onnx.load(report.output, load_external_data=False).graph
    expected = onnx.load(zoo.model("opt-cache"), load_external_data=False).graph
    assert [*values.input] == [*expected.input] and [*values.output] == [*expected.output]


def test_genai_generates_the_same_in_float16(tmp_path: Path) -> None:
    """Logits and cache are then float16 too, as in a model that was exported so."""
    genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai")
    model = zoo.model("opt-cache")
    said = json.loads(model.with_name("config.json").read_text())
    names = {
        "inputs": {
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
    }
    sizes = {
        "head_size": said["hidden_size"] // said["num_attention_heads"],
        "num_key_value_heads": said["num_attention_heads"],
        **{key: said[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")},
    }
    decoder = {"filename": "model.onnx", "session_options": {}, **sizes, **names}
    tokens = {f"{each}_token_id": said[f"{each}_token_id"] for each in ("bos", "eos", "pad")}
    config = {"type": "llama", "context_length": 64, "vocab_size": said["vocab_size"], **tokens}
    written = []
    for dtype in ("keep", "fp16"):
        folder = tmp_path / dtype
        convert(model, folder / "model.onnx", profile="genai", dtype=dtype, scheme="w8a16", group_size=16)
        whole = {"model": {**config, "decoder": decoder}, "search": {"max_length": 24}}
        (folder / "genai_config.json").write_text(json.dumps(whole))
        loaded = genai.Model(str(folder))
        parameters = genai.GeneratorParams(loaded)
        parameters.set_search_options(max_length=24, do_sample=False)
        generator = genai.Generator(loaded, parameters)
        generator.append_tokens(np.array([[5, 6, 7, 8]], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        written.append([int(token) for token in generator.get_sequence(0)])
    assert written[0] == written[1] and len(written[0]) == 24


def test_accuracy_levels_are_in_the_nodes(tmp_path: Path) -> None:
    """Triton Inference Server cannot set them by a session option."""
    report = convert(zoo.model("llama"), tmp_path / "q.onnx", profile="triton", scheme="w4a8")
    assert report.requires.session_config == {}
    functions = onnx.load(report.output).functions
    products = [node for each in functions for node in each.node if node.op_type == "MatMulNBits"]
    assert products and all(any(a.name == "accuracy_level" for a in node.attribute) for node in products)


def test_python_takes_the_same(tmp_path: Path) -> None:
    report = zq2onnx.convert(linear_model.write(tmp_path / "m.onnx"), profile="ort-cpu")
    assert str(report.profile).startswith("profile ort-cpu: dtype fp32, target portable (")
