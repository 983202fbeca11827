"""Options from the command line and from recipes, which wins, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import zq2onnx
from tests import zoo
from tests.convert import linear_model
from zq2onnx.cli.app import main
from zq2onnx.conversion.choices import DEFAULTS, Choices
from zq2onnx.conversion.loading import load
from zq2onnx.conversion.options import resolve
from zq2onnx.conversion.recipe import read_recipe
from zq2onnx.errors import UserError
from zq2onnx.passes.candidates import EMBEDDING
from zq2onnx.passes.select_nodes import select_nodes
from zq2onnx.scheme import Clip, FactorType, PerBlock, PerChannel, Scheme, Target

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "recipe.toml"


def test_defaults() -> None:
    options = resolve(Choices(), None)
    assert options.policy.scheme == Scheme()
    assert options.policy.embedding is None and options.target is Target.PORTABLE and not options.single_file
    assert options.policy.patterns() == []


def test_silence_is_none_and_not_false() -> None:
    said = Choices(symmetric=False, lorc_rank=0, only=()).over(
        Choices(symmetric=True, lorc_rank=4, only=("a",))
    )
    assert (said.symmetric, said.lorc_rank, said.only) == (False, 0, ())
    assert Choices().over(DEFAULTS) == DEFAULTS


def test_command_line_wins_over_recipe_over_default(recipe: Path) -> None:
    recipe.write_text('scheme = "w3a16"\ngroup-size = "row"\nsymmetric = true\nexclude = "a"\ntarget = "qdq"')
    options = resolve(Choices(scheme="w2a16", symmetric=False), recipe)
    assert options.policy.scheme == Scheme(bits=2, granularity=PerChannel())
    assert options.policy.exclude == ("a",) and options.target is Target.QDQ


def test_tables_in_order(recipe: Path) -> None:
    recipe.write_text(
        'lorc-rank = 2\n[[node]]\nmatch = "a"\nscheme = "w8a16"\nclip = "mse"\nlorc-dtype = "float"\n'
        '[[node]]\nmatch = "b"\nkeep-float = true\ngroup-size = 16\nsymmetric = true\nlorc-rank = 0\n'
    )
    first, second = resolve(Choices(), recipe).policy.rules
    assert first.match == "a" and first.keep_float is None
    assert (first.overrides["bits"], first.overrides["clip"]) == (8, Clip.MSE)
    assert first.overrides["lorc_dtype"] is FactorType.FLOAT
    assert second.match == "b" and second.keep_float is True
    assert dict(second.overrides) == {"granularity": PerBlock(16), "symmetric": True, "lorc_rank": 0}


def test_description_is_plain_and_reads_as_a_recipe(recipe: Path) -> None:
    recipe.write_text(
        'scheme = "w3a16"\n[[node]]\nmatch = "a"\nscheme = "w8a16"\ngroup-size = "row"\nclip = "mse"\n'
        'method = "rtn"\nsymmetric = true\nlorc-rank = 0\nlorc-dtype = "float"\n'
    )
    said = resolve(Choices(), recipe).describe()
    assert json.loads(json.dumps(said)) == said
    assert said["node"] == [
        {
            "match": "a",
            "keep-float": None,
            "scheme": "w8a16",
            "group-size": "row",
            "clip": "mse",
            "method": "rtn",
            "symmetric": True,
            "lorc-rank": 0,
            "lorc-dtype": "float",
        }
    ]


def test_every_option_that_changes_the_bytes_is_described() -> None:
    changed = {
        "scheme": "w8a8",
        "group_size": 16,
        "symmetric": True,
        "method": "rtn",
        "clip": "mse",
        "lorc_rank": 3,
        "lorc_dtype": "float",
        "lorc": "plain",
        "lorc_rounds": 2,
        "objective": "model",
        "act_granularity": "block",
        "smooth": "off",
        "calib_samples": 3,
        "calib_length": 3,
        "calib_inputs": "float",
        "embedding_bits": 8,
        "dtype": "fp16",
        "target": "qdq",
        "bias": "outside",
        "merge": True,
        "single_file": True,
        "only": ("a",),
        "include": ("a",),
        "exclude": ("a",),
        "profile": "triton",
    }
    assert set(changed) == set(vars(DEFAULTS))

    def description(**said: Any) -> str:
        # of granularities of activations there is a choice with int8 ones alone
        scheme = {"scheme": "w4a8"} if "act_granularity" in said else {}
        return json.dumps(resolve(Choices(**scheme, **said), None, calibrated=True).describe())

    descriptions = [description(**{key: value}) for key, value in changed.items()]
    assert len({description(), description(act_granularity="token"), *descriptions}) == len(changed) + 2


@pytest.mark.parametrize(
    ("said", "calibrated", "expected"),
    [
        ({}, False, ("rtn", "none", "plain")),
        ({}, True, ("gptq", "auto", "exact")),
        ({"method": "rtn"}, True, ("rtn", "none", "exact")),
        ({"method": "gptq", "clip": "mse"}, True, ("gptq", "mse", "exact")),
        ({"method": "zq-local", "lorc": "plain"}, True, ("zq-local", "none", "plain")),
    ],
)
def test_defaults_that_depend_on_calibration_data(
    said: dict[str, Any], calibrated: bool, expected: tuple[str, str, str]
) -> None:
    described = resolve(Choices(**said), None, calibrated).describe()
    assert (described["method"], described["clip"], described["lorc"]) == expected


@pytest.mark.parametrize(
    ("said", "calibrated", "found"),
    [
        ({"method": "gptq"}, False, "method gptq; required: calibration data; give --calib"),
        ({"lorc": "exact"}, False, "an exact low-rank branch; required: calibration data"),
        ({"objective": "model"}, False, "objective model; required: calibration data"),
        ({"calib_samples": 3}, False, "--calib-samples 3; required: calibration data"),
        ({"calib_inputs": "float"}, False, "--calib-inputs float; required: calibration data"),
        (
            {"scheme": "w8a8", "act_granularity": "tensor", "target": "qdq"},
            False,
            "static activation scales; required: calibration data",
        ),
        ({"method": "rtn", "clip": "auto"}, True, "clip auto with method rtn; required: method gptq"),
        (
            {"scheme": "w8a8", "act_granularity": "tensor"},
            True,
            "target portable with one activation scale a tensor; required: --target qdq",
        ),
    ],
)
def test_choices_that_do_not_go_together(said: dict[str, Any], calibrated: bool, found: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(Choices(**said), None, calibrated)
    assert str(error.value).startswith(found)


def test_gradients_need_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for said in ({"method": "zq-local"}, {"method": "zq-global"}, {"objective": "model"}):
        with pytest.raises(UserError, match="without torch; required: torch; pip install"):
            resolve(Choices(**said), None, calibrated=True)


@pytest.mark.parametrize(("calibrated", "expected"), [(True, "exact"), (False, "plain")])
def test_a_table_may_leave_the_branch_to_the_data(recipe: Path, calibrated: bool, expected: str) -> None:
    recipe.write_text('lorc = "plain"\n[[node]]\nmatch = "a"\nlorc = "auto"\n')
    base, refined = resolve(Choices(), recipe, calibrated).schemes
    assert (base.lorc.value, refined.lorc.value) == ("plain", expected)


@pytest.mark.parametrize(
    ("tables", "found"),
    [
        (
            ('act-granularity = "tensor"', 'scheme = "w8a8"'),
            "static activation scales; required: calibration",
        ),
        (('method = "rtn"', 'clip = "auto"'), "clip auto with method rtn; required: method gptq"),
    ],
)
def test_tables_that_do_not_go_together_at_a_node(
    tmp_path: Path, recipe: Path, tables: tuple[str, str], found: str
) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    recipe.write_text("".join(f'[[node]]\nmatch = "layers"\n{table}\n' for table in tables))
    with pytest.raises(UserError, match=found):
        zq2onnx.convert(model, tmp_path / "q.onnx", recipe=recipe, target="qdq")
    assert not (tmp_path / "q.onnx").exists()


def test_an_embedding_heeds_no_clip_of_gptq(recipe: Path) -> None:
    recipe.write_text('clip = "mse"\nembedding-bits = 8\n[[node]]\nmatch = "embed"\nclip = "auto"\n')
    options = resolve(Choices(method="gptq"), recipe, calibrated=True)
    selection = select_nodes(load(zoo.model("opt")).model, options.policy)
    clips = {
        scheme.clip.value for candidate, scheme in selection.chosen.values() if candidate.role == EMBEDDING
    }
    assert clips == {"mse"}


def test_a_table_that_names_a_method_has_its_clip(recipe: Path) -> None:
    recipe.write_text('method = "rtn"\n[[node]]\nmatch = "a"\nmethod = "gptq"\n')
    options = resolve(Choices(), recipe, calibrated=True)
    assert [scheme.clip.value for scheme in options.schemes] == ["none", "auto"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('colour = "red"', "unknown key 'colour'; required: one of scheme, group-size"),
        ("jobs = 2", "unknown key 'jobs'"),
        ('scheme = "w5a16"', "unknown scheme 'w5a16'; required: one of w8a16, w4a16, w3a16, w2a16"),
        ("scheme = 4", "scheme is 4; required: text"),
        ("group-size = 100", "group size 100; required: one of 16, 32"),
        ("group-size = 64.0", "group-size is 64.0; required: a whole number or text"),
        ("symmetric = 1", "symmetric is 1; required: true or false"),
        ("lorc-rank = true", "lorc-rank is True; required: a whole number"),
        ("lorc-rank = 1000", "rank 1000; required: 0 to 128"),
        ('method = "awq"', "unknown method 'awq'; required: one of rtn, gptq, zq-local, zq-global"),
        ("embedding-bits = 3", "3 embedding bits; required: 8 or 4"),
        ('target = "tflite"', "unknown target 'tflite'; required: one of portable, qdq"),
        ("only = 3", "only is 3; required: text or a list of texts"),
        ('only = ["a", 3]', "only is ['a', 3]; required: text or a list of texts"),
        ("node = 3", "[[node]] tables"),
        ('[node]\nmatch = "a"', "[[node]] tables"),
        ("[[node]]\nkeep-float = true", "[[node]] table 1: it has no `match`"),
        ('[[node]]\nmatch = "a"\n[[node]]\nmatch = "a"\nbits = 3', "[[node]] table 2: unknown key 'bits'"),
        ('[[node]]\nmatch = "a"\nscheme = "w9a16"', "[[node]] table 1: unknown scheme 'w9a16'"),
        ('[[node]]\nmatch = "a"\nlorc-rank = -1', "[[node]] table 1: low-rank compensation of rank -1"),
        ('[[node]]\nmatch = "a"\ntarget = "qdq"', "unknown key 'target'; required: one of match, scheme"),
        ("[[node]]\nmatch = 3", "match is 3; required: text"),
        ('[[node]]\nmatch = "a"\nkeep-float = "yes"', "keep-float is 'yes'; required: true or false"),
        ("scheme = ", "a recipe in TOML"),
        ('scheme = "w4a16"\nscheme = "w4a16"', "a recipe in TOML"),
    ],
)
def test_recipe_that_is_refused(recipe: Path, text: str, found: str) -> None:
    recipe.write_text(text)
    with pytest.raises(UserError) as error:
        resolve(Choices(), recipe)
    assert str(error.value).startswith(f"{recipe}: ") and found in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_value_is_refused_though_the_command_line_wins(recipe: Path) -> None:
    recipe.write_text('scheme = "w5a16"')
    with pytest.raises(UserError, match="unknown scheme 'w5a16'"):
        resolve(Choices(scheme="w4a16"), recipe)


def test_recipe_that_cannot_be_read(recipe: Path) -> None:
    with pytest.raises(UserError, match="recipe.toml: no such file"):
        read_recipe(recipe)
    with pytest.raises(UserError, match="is a directory"):
        read_recipe(recipe.parent)
    recipe.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="a recipe in TOML"):
        read_recipe(recipe)


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": 4},
        {"lorc_rank": "8"},
        {"symmetric": "no"},
        {"embedding_bits": True},
        {"only": [3]},
        {"group_size": 64.0},
    ],
)
def test_python_arguments_of_a_wrong_type(tmp_path: Path, options: dict[str, Any]) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=next(iter(options)).replace("_", "-")):
        zq2onnx.convert(model, **options)


def test_bad_recipe_at_the_command_line(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    recipe.write_text('[[node]]\nmatch = "nowhere"\nkeep-float = true')
    before = linear_model.files(tmp_path)
    assert main(["convert", str(model), "--recipe", str(recipe)]) == 2
    assert "'nowhere' matches no node" in capsys.readouterr().err
    assert main(["convert", str(model), "--recipe", str(tmp_path / "absent.toml")]) == 2
    assert capsys.readouterr().err.endswith(
        "absent.toml: no such file or directory; required: a recipe in TOML\n"
    )
    assert linear_model.files(tmp_path) == before


def test_tables_refine_nodes_of_a_model(tmp_path: Path, recipe: Path) -> None:
    model = linear_model.write(tmp_path / "m.onnx")
    recipe.write_text(
        'scheme = "w2a16"\n[[node]]\nmatch = "layers"\nscheme = "w8a16"\ngroup-size = 32\n'
        '[[node]]\nmatch = "layers.1"\nscheme = "w3a16"\nlorc-rank = 0\n'
        '[[node]]\nmatch = "2.weight"\nkeep-float = true\n'
    )
    report = zq2onnx.convert(model, recipe=recipe, scheme="w4a16", check="full")
    assert [(node.bits, node.group_size, node.rank) for node in report.nodes] == [
        (8, "32", 8),
        (3, "32", 0),
        (None, None, None),
    ]
    assert "kept float by the recipe's '2.weight'" in report.nodes[2].reason
    assert report.output.endswith("m.w4a16.onnx")


def test_the_documents_example_runs(tmp_path: Path, recipe: Path, tiny_model: Path) -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    recipe.write_text(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    report = zq2onnx.convert(tiny_model / "model.onnx", tmp_path / "out" / "q.onnx", recipe=recipe)
    by_name = {node.name: node for node in report.nodes}

    def outcome(name: str) -> tuple[int | None, int | None]:
        return by_name[name].bits, by_name[name].rank

    layers = "model.decoder.layers"
    assert outcome(f"{layers}.1.fc1") == (3, 8)
    assert outcome(f"{layers}.1.fc2") == (4, 16)
    assert outcome(f"{layers}.0.fc2") == outcome(f"{layers}.0.self_attn.q_proj") == (8, 0)
    assert outcome(f"{layers}.3.self_attn.out_proj") == (None, None)
    assert outcome("lm_head") == (3, 8)
    assert outcome("model.decoder.embed_tokens")[0] == 8


def test_the_document_names_every_key() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    keys = [key.replace("_", "-") for key in vars(DEFAULTS)]
    assert [key for key in [*keys, "match", "keep-float"] if f"`{key}`" not in page] == []
