"""Streams a model's text over HTTP.

    pip install "zq2onnx[cpu,examples]"
    MODEL=served uvicorn --factory examples.serve:create_app
    curl --no-buffer localhost:8000/generate --json '{"prompt": "Once upon a time"}'

MODEL is an ONNX file with KV cache, or a folder that `zq2onnx package --for genai` made. At most SLOTS texts
are generated at a time; others wait. A client that goes away frees its slot.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Body, FastAPI, HTTPException
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from zq2onnx.errors import UserError
from zq2onnx.runtime.serving import Generator


def create_app() -> FastAPI:
    generator = Generator(os.environ["MODEL"])
    tokenizer = Tokenizer.from_file(str(generator.path.with_name("tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    slots = asyncio.Semaphore(int(os.environ.get("SLOTS", "4")))
    app = FastAPI()
    app.state.running = 0

    async def pieces(ids: list[int], steps: Iterator[tuple[int | None, ...]]) -> AsyncIterator[str]:
        words = DecodeStream(skip_special_tokens=True)
        for token in ids:  # which say how the text begins
            words.step(tokenizer, token)
        async with slots:
            app.state.running += 1
            try:  # A step runs in a thread, and is waited for even where the client has gone.
                while (tokens := await run_in_threadpool(next, steps, None)) is not None:
                    if piece := words.step(tokenizer, tokens[0]):
                        yield piece
            finally:
                app.state.running -= 1
                steps.close()  # and with it the cache

    @app.post("/generate")
    async def generate(
        prompt: Annotated[str, Body()], max_new_tokens: Annotated[int, Body()] = 64
    ) -> StreamingResponse:
        try:
            ids = tokenizer.encode(prompt.encode().decode()).ids  # or UnicodeError
            steps = generator.stream([ids], max_new_tokens)
        except (UserError, UnicodeError) as error:
            raise HTTPException(422, str(error)) from None
        return StreamingResponse(pieces(ids, steps), media_type="text/plain; charset=utf-8")

    return app
