"""An upstream of ours that cannot be trusted, and keeps books about it: the other side of ``bench.budget_race``.

    python -m bench.liar PORT BOOKS

The prompt's first word says how it behaves. Every call that it served is one line of BOOKS: what it generated, what it
was promised (``max_tokens``), what it invoices. An invoice is the usage that it reported; of a call that was cut off,
what it had generated, or, from those that do not listen, all that it was promised.

========= ==========================================================================
honest    generates as many tokens as the prompt says, at most ``max_tokens``, and says so
deaf      like honest, but goes on to ``max_tokens`` when its caller has left
endless   ignores ``max_tokens`` and generates three times as much
boasts    reports ten times of what it took in and generated
hides     reports half of it
early     reports its usage at every tenth token, as if that were all
silent    reports no usage
breaks    breaks off half-way (an answer that is not a stream is broken before it begins, and not invoiced)
========= ==========================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import uvloop

from airi.http.server import Request, serve
from airi.up.ready import notify_ready

MODES = ("honest", "deaf", "endless", "boasts", "hides", "early", "silent", "breaks")
INPUT_USD_MICROS, OUTPUT_USD_MICROS = 20, 60
"""Price of a token: 20 and 60 dollars a million."""
BYTES_PER_TOKEN = 3
"""How it counts what it is sent: dearer than anybody's rule of thumb."""
_TOKEN_S = 0.004
_GREED = 3
_BOAST = 10
_EARLY = 10
_JSON = ((b"content-type", b"application/json"),)
_EVENTS = ((b"content-type", b"text/event-stream"),)


@dataclass
class Line:
    """One call in the books, in tokens."""

    request: str
    mode: str
    stream: bool
    input: int
    promised: int
    generated: int = 0
    invoiced_input: int = 0
    invoiced_output: int = 0
    ended: str = "cut"

    def invoice_usd_micros(self) -> int:
        """What it asks for."""
        return self.invoiced_input * INPUT_USD_MICROS + self.invoiced_output * OUTPUT_USD_MICROS

    def promise_usd_micros(self) -> int:
        """What AIRI sent and promised: the input as it was, the output as far as ``max_tokens``."""
        return self.input * INPUT_USD_MICROS + self.promised * OUTPUT_USD_MICROS


class Liar:
    """Serves and writes its books."""

    def __init__(self, books: IO[str]) -> None:
        self._books = books

    async def handle(self, request: Request) -> None:
        """Serve one call; whatever ends it, it is in the books."""
        body = json.loads(request.body)
        mode, _, wish = body["messages"][0]["content"].partition(" ")
        name = (request.header(b"x-request-id") or b"").decode()
        line = Line(
            name, mode, body.get("stream") is True, len(request.body) // BYTES_PER_TOKEN, body["max_tokens"]
        )
        wanted = line.promised * _GREED if mode == "endless" else min(int(wish.split()[0]), line.promised)
        line.invoiced_input = line.input
        try:
            await (self._stream if line.stream else self._whole)(request, line, wanted)
        finally:
            if line.ended == "cut":
                line.invoiced_output = line.promised if mode == "deaf" else line.generated
            self._books.write(json.dumps(asdict(line)) + "\n")
            self._books.flush()

    async def _whole(self, request: Request, line: Line, wanted: int) -> None:
        if line.mode == "breaks":
            line.ended, line.invoiced_input = "broken", 0
            request.start(200, _JSON)
            request.write(b"{")
            await asyncio.sleep(_TOKEN_S)
            request.abort()
            return
        line.generated = wanted  # as it is computed: a caller that leaves does not undo it
        await asyncio.sleep(wanted * _TOKEN_S)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "word " * wanted},
            "finish_reason": "stop",
        }
        self._end(line)
        request.respond(
            200,
            _JSON,
            json.dumps(
                {"id": "x", "object": "chat.completion", "choices": [choice], **_usage(line)}
            ).encode(),
        )

    async def _stream(self, request: Request, line: Line, wanted: int) -> None:
        request.start(200, _EVENTS)
        for number in range(1, wanted + 1):
            line.generated = number
            early = line.mode == "early" and number % _EARLY == 1
            _send(
                request,
                {
                    "choices": [{"index": 0, "delta": {"content": "word "}}],
                    **(_reported(line.input, number) if early else {}),
                },
            )
            await request.drain()
            if line.mode == "breaks" and number * 2 > wanted:
                line.ended, line.invoiced_output = "broken", number
                request.abort()
                return
            await asyncio.sleep(_TOKEN_S)
        self._end(line)
        _send(request, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if line.mode != "silent":
            _send(request, {"choices": [], **_usage(line)})
        request.write(b"data: [DONE]\n\n")
        request.finish()

    @staticmethod
    def _end(line: Line) -> None:
        line.ended = "whole"
        line.invoiced_output = line.generated
        if line.mode == "boasts":
            line.invoiced_input, line.invoiced_output = line.input * _BOAST, line.generated * _BOAST
        elif line.mode == "hides":
            line.invoiced_input, line.invoiced_output = line.input // 2, line.generated // 2


def _usage(line: Line) -> dict[str, Any]:
    return {} if line.mode == "silent" else _reported(line.invoiced_input, line.invoiced_output)


def _reported(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
    }


def _send(request: Request, chunk: dict[str, Any]) -> None:
    request.write(
        b"data: " + json.dumps({"id": "x", "object": "chat.completion.chunk", **chunk}).encode() + b"\n\n"
    )


def read(books: Path) -> list[Line]:
    """Return what the books say."""
    return [Line(**json.loads(text)) for text in books.read_text().splitlines()]


async def main(port: int, books: Path) -> None:
    """Serve until SIGTERM."""
    with books.open("a") as file:
        server = await serve(Liar(file).handle, host="127.0.0.1", port=port)
        notify_ready()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        await server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("books", type=Path)
    options = parser.parse_args()
    uvloop.run(main(options.port, options.books))
