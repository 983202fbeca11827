"""`examples/serve.py` under load, over loopback: nothing is lost, and who goes away holds nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import zoo
from tests.conftest import ROOT
from tests.serving.engines import PROMPTS, by_generator, encoded, tokenizer
from zq2onnx.runtime.serving import Generator

httpx = pytest.importorskip("httpx", reason="needs httpx")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn")
pytest.importorskip("fastapi", reason="needs fastapi")

CLIENTS = 50
COUNT = 12
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


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = zoo.model("tiny-cache").parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", str(folder))
        patch.setenv("SLOTS", str(SLOTS))
        spec = importlib.util.spec_from_file_location("serve_example", ROOT / "examples" / "serve.py")
        assert spec is not None and spec.loader is not None
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        app = example.create_app()
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
    closed = threading.Semaphore(0)

    def endless(*arguments: object) -> Iterator[tuple[int]]:
        try:
            while True:
                time.sleep(0.001)
                yield (40,)
        finally:
            closed.release()

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "stream", endless)
        for _ in range(2 * SLOTS):  # twice as many as there is room for, each of which would stay for ever
            with httpx.stream(
                "POST", f"{server.url}/generate", json={"prompt": "a"}, timeout=PATIENCE
            ) as one:
                assert next(one.iter_text())
                assert server.app.state.running >= 1
    assert all(closed.acquire(timeout=PATIENCE) for _ in range(2 * SLOTS))
    wait_until(lambda: server.app.state.running == 0)
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


def test_it_is_short() -> None:
    assert len((ROOT / "examples" / "serve.py").read_text(encoding="utf-8").splitlines()) <= 60
