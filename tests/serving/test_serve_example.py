"""`examples/serve.py` under load, over loopback: nothing is lost, and who goes away holds nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests import zoo
from tests.conftest import ROOT
from tests.serving.engines import PROMPTS, by_generator, encoded, tokenizer
from zq2onnx.runtime.serving import Generator

httpx = pytest.importorskip("httpx", reason="needs httpx")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn")
testclient = pytest.importorskip("fastapi.testclient", reason="needs fastapi")

CLIENTS = 50
COUNT = 12
LONG = 250  # tokens, nearly the whole context
SLOTS = 3
PATIENCE = 60.0  # seconds after which something hangs


@dataclass(frozen=True)
class Server:
    """The example, running.

    Attributes:
        url: of its root.
        app: the application.
        folder: of its model.
    """

    url: str
    app: Any
    folder: Path


def load_example() -> Any:
    """The example's module."""
    spec = importlib.util.spec_from_file_location("serve_example", ROOT / "examples" / "serve.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = zoo.model("tiny-cache").parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", str(folder))
        patch.setenv("SLOTS", str(SLOTS))
        app = load_example().create_app()
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_until(lambda: running.started)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield Server(f"http://127.0.0.1:{port}", app, folder)
    running.should_exit = True
    thread.join(PATIENCE)


def wait_until(holds: Any) -> None:
    """Wait for something that another thread brings about."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def expected(server: Server) -> list[str]:
    """The texts of all prompts."""
    texts = by_generator(Generator(server.folder, threads=1), encoded(server.folder), COUNT)
    return [tokenizer(server.folder).decode(text) for text in texts]


async def ask(client: Any, prompt: str) -> list[str]:
    """The pieces of one text, as they come."""
    body = {"prompt": prompt, "max_new_tokens": COUNT}
    async with client.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200
        return [piece async for piece in response.aiter_text()]


async def ask_all(url: str, prompts: list[str]) -> list[list[str]]:
    """Everything at once."""
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
        return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))


def test_fifty_clients_at_once_all_get_their_text_in_order(server: Server) -> None:
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(CLIENTS)]
    texts = expected(server)
    pieces = asyncio.run(ask_all(server.url, prompts))
    assert ["".join(each) for each in pieces] == [texts[index % len(PROMPTS)] for index in range(CLIENTS)]
    assert max(map(len, pieces)) > 1  # they did come in pieces
    wait_until(lambda: server.app.state.running == 0)


def test_a_client_that_goes_away_frees_its_slot(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[Any] = []
    stream, run, runs = Generator.stream, Generator._run, itertools.count()

    def kept(*arguments: Any) -> Any:
        streams.append(stream(*arguments))
        return streams[-1]

    def slowed(*arguments: Any) -> Any:
        next(runs)
        time.sleep(0.005)
        return run(*arguments)

    long = {"prompt": "a", "max_new_tokens": LONG}
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "stream", kept)
        patch.setattr(Generator, "_run", slowed)
        for _ in range(2 * SLOTS):  # twice as many as there is room for, each of which would stay for ever
            with httpx.stream("POST", f"{server.url}/generate", json=long, timeout=PATIENCE) as one:
                assert next(one.iter_text())
                assert server.app.state.running >= 1
        wait_until(lambda: server.app.state.running == 0)
    assert len(streams) == 2 * SLOTS
    assert all(each.gi_frame is None for each in streams)  # and with its frame the cache
    assert next(runs) < LONG * SLOTS  # none of them came to its end
    (pieces,) = asyncio.run(ask_all(server.url, [PROMPTS[0]]))
    assert "".join(pieces) == expected(server)[0]


def test_what_is_wrong_with_a_request_is_said(server: Server) -> None:
    answers = [
        httpx.post(f"{server.url}/generate", json=body, timeout=PATIENCE)
        for body in ({"prompt": ""}, {"prompt": "a", "max_new_tokens": 500}, {"max_new_tokens": 5})
    ]
    assert [answer.status_code for answer in answers] == [422, 422, 422]
    assert "a prompt of 0 tokens" in answers[0].json()["detail"]
    assert "at most 256 together" in answers[1].json()["detail"]
    half, kind = rb'{"prompt": "a\ud800b"}', {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/generate", content=half, headers=kind, timeout=PATIENCE)
    assert answer.status_code == 422 and "surrogates not allowed" in answer.json()["detail"]


def test_a_text_begins_as_its_prompt_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's decoder drops the space of a first word, and tokenizers may truncate unless told not to."""
    folder = tmp_path / "served"
    shutil.copytree(zoo.model("tiny-cache").parent, folder)
    letters = {"▁": 0, "a": 5} | {f"▁{index}": index for index in range(6, 4096)}
    words = Tokenizer(models.WordLevel(letters, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    strip = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    words.decoder = decoders.Sequence(strip)
    words.enable_truncation(1)
    words.save(str(folder / "tokenizer.json"))
    monkeypatch.setenv("MODEL", str(folder))
    words.no_truncation()
    ids = words.encode("6 7 8").ids
    (text,) = by_generator(Generator(folder, threads=1), [ids], 3)
    client = testclient.TestClient(load_example().create_app())
    answer = client.post("/generate", json={"prompt": "6 7 8", "max_new_tokens": 3})
    assert len(ids) == 3 and answer.text == words.decode(ids + text)[len("6 7 8") :]
    assert answer.text.startswith(" ")


def test_it_is_short() -> None:
    assert len((ROOT / "examples" / "serve.py").read_text(encoding="utf-8").splitlines()) <= 60
