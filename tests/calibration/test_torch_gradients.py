"""Output moments, piece by piece, against automatic differentiation of the whole model."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests import zoo
from tests.calibration.walking import from_text, made_up, normalized
from zq2onnx.calibration import Samples
from zq2onnx.calibration.linears import find_linears
from zq2onnx.errors import UserError
from zq2onnx.passes.partition import Piece

torch = pytest.importorskip("torch", reason="needs torch")

from zq2onnx.calibration import torch_gradients, torch_piece  # noqa: E402
from zq2onnx.calibration.torch_backward import PieceGradients  # noqa: E402
from zq2onnx.calibration.torch_gradients import OutputMoments, output_moments  # noqa: E402
from zq2onnx.calibration.torch_loss import loss_gradient, sample_labels, shown_tokens  # noqa: E402

ARCHITECTURES = ("opt", "llama", "gpt2", "bert")
SEED = 5
Array = np.ndarray


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples_for(path: Path, padded: bool = False) -> Samples:
    """Three batches of two samples, the last held out."""
    batches = [zoo.feeds(path, batch=2, length=9, seed=seed) for seed in range(3)]
    if padded:
        batches[0]["attention_mask"][1, :4] = 0
        batches[1]["attention_mask"][0, :2] = 0
    return made_up(batches, [False, False, True])


def gathered(
    model: ir.Model, samples: Samples, nodes: Collection[str] | None = None, **options: object
) -> dict[str, Array]:
    """The moments of a model's linears, by node."""
    names = list(find_linears(model)) if nodes is None else nodes
    with output_moments(model, Path("m.onnx"), samples, names, seed=SEED, **options) as found:  # type: ignore[arg-type]
        assert found.notes == ()
        return {name: np.array(found.load(name)) for name in names}


def of_zoo(name: str, padded: bool = False, **options: object) -> dict[str, Array]:
    path = zoo.model(name)
    return gathered(normalized(path), samples_for(path, padded), **options)  # type: ignore[arg-type]


def hugging_face(name: str, samples: Samples, nodes: Collection[str]) -> dict[str, Array]:
    """The same of the model that was exported, differentiated at once."""
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModel if name == "bert" else AutoModelForCausalLM
    network = kind.from_pretrained(zoo.checkpoint(name)).eval()
    outputs: dict[str, torch.Tensor] = {}

    def keep(node: str):  # type: ignore[no-untyped-def]
        def hook(module: object, inputs: object, output: torch.Tensor) -> None:
            output.retain_grad()
            outputs[node] = output

        return hook

    for node in nodes:
        network.get_submodule(node).register_forward_hook(keep(node))
    sums: dict[str, Array] = dict.fromkeys(nodes, 0.0)  # type: ignore[arg-type]
    shown = 0
    for index, batch in enumerate(samples.batches):
        if samples.held_out[index]:
            continue
        mask = torch.from_numpy(batch["attention_mask"])
        made = network(**{key: torch.from_numpy(array) for key, array in batch.items()})
        rng = np.random.default_rng([SEED, index])
        if name == "bert":
            noise = torch.from_numpy(rng.standard_normal(tuple(made.last_hidden_state.shape), np.float32))
            losses = (made.last_hidden_state * noise).sum(-1)
        else:
            labels = sample_labels(made.logits, rng)
            losses = torch.nn.functional.cross_entropy(made.logits.mT, labels, reduction="none")
        (losses * mask).sum().backward()
        shown += int(mask.sum())
        for node, output in outputs.items():
            rows = output.grad.reshape(-1, output.shape[-1]).double().numpy()
            sums[node] = sums[node] + rows.T @ rows
    return {node: total / shown for node, total in sums.items()}


def assert_close(found: dict[str, Array], expected: dict[str, Array], tolerance: float = 1e-3) -> None:
    assert set(found) == set(expected)
    for name, moment in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == moment.shape
        assert np.linalg.norm(moment) > 0
        assert np.linalg.norm(found[name] - moment) <= tolerance * np.linalg.norm(moment), name


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moments_are_those_that_torch_gives_of_the_exported_model(name: str, padded: bool) -> None:
    path = zoo.model(name)
    found = of_zoo(name, padded, threads=1)
    assert len(found) >= 9
    assert_close(found, hugging_face(name, samples_for(path, padded), list(found)))


def at_once(model: ir.Model, samples: Samples) -> dict[str, Array]:
    """The moments of a model that is differentiated as one piece."""
    linears, target = list(find_linears(model).values()), model.graph.outputs[0]
    whole = PieceGradients(Piece(tuple(model.graph), (), (target,), True), [target], linears, ())
    rows: dict[str, list[Array]] = {}
    for index, batch in enumerate(samples.batches):
        rng = np.random.default_rng([SEED, index])
        inputs, inner = whole.run(batch, lambda name, y, rng=rng: loss_gradient(y, name, None, rng))
        assert not inputs
        for name, gradient in inner.items():
            rows.setdefault(name, []).append(gradient.flatten(0, -2).double().numpy())
    joined = {name: np.concatenate(parts) for name, parts in rows.items()}
    return {name: gradients.T @ gradients / len(gradients) for name, gradients in joined.items()}


def chopped(model: ir.Model, parts: int) -> list[Piece]:
    """Pieces of as many nodes each, wherever that cuts: many values go to several later pieces."""
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    size = -(-len(nodes) // parts)
    runs = [nodes[first : first + size] for first in range(0, len(nodes), size)]
    place = {node: index for index, run in enumerate(runs) for node in run}
    fed = {*model.graph.inputs}
    pieces = []
    for index, run in enumerate(runs):
        read = dict.fromkeys(value for node in run for value in node.inputs if value is not None)
        made = [value for node in run for value in node.outputs]
        inputs = [v for v in read if v in fed or place.get(v.producer(), index) < index]  # type: ignore[arg-type]
        outputs = [
            v for v in made if v.is_graph_output() or any(place[reader] > index for reader in v.consumers())
        ]
        pieces.append(Piece(tuple(run), tuple(inputs), tuple(outputs), True))
    return pieces


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_piecewise_gradients_are_those_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zoo.model(name)
    samples = made_up(samples_for(path).batches)
    expected = at_once(normalized(path), samples)
    model = normalized(path)
    assert len(torch_gradients.partition(model)) > 3
    assert_close(gathered(model, samples), expected, 1e-4)
    pieces = chopped(model, 40)
    read = [value for piece in pieces for value in piece.inputs if not value.is_graph_input()]
    assert len(read) > len({*read}) + 5
    monkeypatch.setattr(torch_gradients, "partition", lambda model: pieces)
    assert_close(gathered(model, samples), expected, 1e-4)


def test_repeated_runs_agree_to_the_bit_whatever_the_budget() -> None:
    first = of_zoo("llama", padded=True)
    for budget in (0, 3000, 10**9):
        again = of_zoo("llama", padded=True, budget=budget)
        assert all(np.array_equal(first[name], again[name]) for name in first)


def test_another_seed_draws_other_labels() -> None:
    path = zoo.model("opt")
    model, node = normalized(path), "model.decoder.layers.1.fc2"
    with (
        output_moments(model, path, samples_for(path), [node], seed=1) as one,
        output_moments(model, path, samples_for(path), [node], seed=2) as two,
    ):
        a, b = one.load(node), two.load(node)
        assert a is not None and b is not None
        assert np.linalg.norm(a - b) > 0.1 * np.linalg.norm(a)
        assert 0.5 < np.trace(a) / np.trace(b) < 2  # of the same distribution


def test_what_a_mask_hides_does_not_count() -> None:
    path = zoo.model("opt")
    samples = samples_for(path, padded=True)
    before = gathered(normalized(path), samples)
    for batch in samples.batches:
        hidden = batch["attention_mask"] == 0
        batch["input_ids"][hidden] = (batch["input_ids"][hidden] + 7) % zoo.VOCABULARY
    assert_close(gathered(normalized(path), samples), before, 1e-5)
    for batch in samples.batches:
        batch["attention_mask"][:] = 1
    shown = gathered(normalized(path), samples)
    assert all(
        np.linalg.norm(shown[name] - before[name]) > 0.1 * np.linalg.norm(shown[name]) for name in shown
    )


def test_only_the_first_fitted_samples_are_taken() -> None:
    path = zoo.model("opt")
    model, samples = normalized(path), samples_for(path)
    three = [samples.batches[0], {key: array[:1] for key, array in samples.batches[1].items()}]
    expected = gathered(model, made_up(three))
    assert_close(gathered(model, samples, most_samples=3), expected, 1e-6)
    four = gathered(model, samples)
    assert np.linalg.norm(four["lm_head"] - expected["lm_head"]) > 0.05 * np.linalg.norm(expected["lm_head"])
    for value in model.graph.inputs:
        value.shape = ir.Shape([2, 9])
    assert_close(gathered(model, samples, most_samples=3), four, 1e-6)


def test_samples_that_are_all_held_out_serve() -> None:
    path = zoo.model("opt")
    batches = samples_for(path).batches[:1]
    found = gathered(normalized(path), made_up(batches, [True]), ["lm_head"])
    assert_close(found, gathered(normalized(path), made_up(batches), ["lm_head"]), 1e-6)


def test_what_is_not_asked_for_is_not_gathered() -> None:
    path = zoo.model("opt")
    everything = of_zoo("opt")
    name = "model.decoder.layers.1.fc1"
    with output_moments(normalized(path), path, samples_for(path), [name], seed=SEED) as found:
        assert found.load("lm_head") is None and found.notes == ()
        moment = found.load(name)
        assert moment is not None and not moment.flags.writeable
        assert_close({name: moment}, {name: everything[name]}, 1e-5)


def test_a_float16_model_is_widened() -> None:
    found, expected = of_zoo("opt-fp16", nodes=["lm_head"]), of_zoo("opt", nodes=["lm_head"])
    assert_close(found, expected, 0.1)


TWINS = """
<ir_version: 10, opset_import: ["": 20]>
g (float[n, 4] x) => (float[n, 4] y) <float[4, 4] w> {
  a = MatMul(x, w)
  b = Relu(a)
  y = MatMul(b, w)
}
"""
RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 4)).astype(np.float32)
W = RNG.standard_normal((4, 4)).astype(np.float32)


def test_nodes_that_share_a_weight_have_moments_of_their_own() -> None:
    model = from_text(TWINS, w=W)
    first, second = (node.name or "" for node in model.graph if node.op_type == "MatMul")
    found = gathered(model, made_up([{"x": X}]))
    noise = np.random.default_rng([SEED, 0]).standard_normal((6, 4), np.float32)
    inner = (noise @ W.T) * (X @ W > 0)
    assert_close(found, {first: inner.T @ inner / 6, second: noise.T @ noise / 6}, 1e-5)


ODD = """
<ir_version: 10, opset_import: ["": 20]>
g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) <float[4, 4] w, float[4, 4] v, float[4, 4] u> {
  a = MatMul(x, w)
  y = Sqrt(a)
  b = MatMul(y, v)
  z = MatMul(b, u)
}
"""


def test_nodes_without_a_moment_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_text(ODD, w=np.zeros_like(W), v=W, u=W)
    first, second, third = (node.name or "" for node in model.graph if node.op_type == "MatMul")
    names = [first, second, third, "nowhere"]
    with output_moments(model, Path("m.onnx"), made_up([{"x": X}]), names) as found:
        assert [found.load(name) for name in names] == [None] * 4
        notes = "\n".join(found.notes)
    assert len(found.notes) == 4
    assert f"node '{first}': the gradient at its output is NaN or infinite" in notes
    assert f"node '{second}': no prediction depends on it" in notes
    assert f"node '{third}': no prediction depends on it" in notes
    assert "node 'nowhere': no product of an activation and a constant weight" in notes
    monkeypatch.setattr(torch_gradients, "WIDEST", 3)
    with output_moments(from_text(TWINS, w=W), Path("m.onnx"), made_up([{"x": X}]), [first]) as found:
        assert found.load(first) is None
        assert found.notes == (f"node '{first}': 4 outputs, more than 3",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    zoo.model("opt")  # is kept where temporary files go, too
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_files_are_gone_when_it_is_closed(folder: Path) -> None:
    found = output_moments(from_text(TWINS, w=W), Path("m.onnx"), made_up([{"x": X}]), ["node_MatMul_0"])
    with found:
        assert [*folder.iterdir()]
    assert not [*folder.iterdir()]
    found.close()
    with pytest.raises(ValueError, match="closed"):
        found.load("node_MatMul_0")


def test_files_are_gone_after_an_error(folder: Path) -> None:
    path = zoo.model("opt")
    seen = []

    def stop(done: int, steps: int) -> None:
        seen.append((done, steps))
        if [*folder.rglob("*.npy")]:
            raise KeyboardInterrupt

    model = normalized(path)
    with pytest.raises(KeyboardInterrupt):
        output_moments(model, path, samples_for(path), list(find_linears(model)), budget=0, progress=stop)
    assert not [*folder.iterdir()]
    # Five pieces; all but the last forwards, then the last back.
    assert seen == [(0, 9), (1, 9), (2, 9), (3, 9), (4, 9), (5, 9)]


def test_a_full_disk_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with OutputMoments() as found, pytest.raises(UserError, match="no space left on device.*'n'.*TMPDIR"):
        found.save("n", W)


def test_torch_is_trusted_only_where_it_reproduces_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    path = zoo.model("opt")
    right = torch_piece.OPERATORS["Relu"]
    monkeypatch.setitem(torch_piece.OPERATORS, "Relu", lambda node, inputs: 1.001 * right(node, inputs))
    with pytest.raises(UserError, match="computed in torch, is off by"):
        of_zoo("opt")
    monkeypatch.delitem(torch_piece.OPERATORS, "Relu")
    with pytest.raises(UserError, match=r"\(Relu\) cannot be differentiated"):
        of_zoo("opt")
    # Above what is asked for the model is differentiated, below it is not.
    output_moments(normalized(path), path, samples_for(path), ["lm_head"]).close()


def test_labels_are_drawn_from_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -1.0]]).expand(20000, 5)
    labels = sample_labels(logits, np.random.default_rng(0))
    expected = torch.softmax(logits[0], 0).numpy()
    frequencies = np.bincount(labels.numpy(), minlength=5) / 20000
    assert frequencies[2] == 0
    np.testing.assert_allclose(frequencies, expected, atol=4 * np.sqrt(0.25 / 20000))


def test_the_gradient_of_logits_is_that_of_the_log_likelihood() -> None:
    logits = torch.from_numpy(RNG.standard_normal((2, 3, 7)).astype(np.float32)).requires_grad_()
    shown = torch.tensor([[True, True, False], [True, False, True]])
    labels = sample_labels(logits, np.random.default_rng(3))
    losses = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
    (losses * shown).sum().backward()
    found = loss_gradient(logits, "logits", shown, np.random.default_rng(3))
    torch.testing.assert_close(found, logits.grad)
    assert not torch.equal(found, loss_gradient(logits, "other", shown, np.random.default_rng(3)))


def test_a_mask_is_of_the_last_tokens() -> None:
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 0]])
    shown = shown_tokens(torch.zeros(2, 3, 5), mask)
    assert shown is not None and shown.tolist() == [[False, True, True], [True, True, False]]
    assert shown_tokens(torch.zeros(2, 5), mask) is None
    assert shown_tokens(torch.zeros(2, 6, 5), mask) is None
    assert shown_tokens(torch.zeros(2, 3, 5), None) is None
