"""One request under way: its sequences in the engine, and the answer they become, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from airi.http.server import Request
from routing.sim.answers import Answer, Piece
from routing.sim.behaviour import Behaviour
from routing.sim.engine import Engine, Sequence
from routing.sim.metrics import ModelMetrics
from routing.sim.tokens import Prompt, split

_escape = json.encoder.encode_basestring
JSON_HEADERS = b"content-type: application/json\r\nx-airi-simulated: true\r\n"
_STREAM_HEADERS = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-airi-simulated: true\r\n"
)


class Generation:
    """Runs the choices of one request. ``chat`` selects the form of the chunks."""

    def __init__(
        self,
        request: Request,
        engine: Engine,
        metrics: ModelMetrics,
        model: str,
        behaviour: Behaviour,
        released: Callable[[], asyncio.Future[None]],
        *,
        chat: bool,
        include_usage: bool,
        identity: str,
    ) -> None:
        self._request = request
        self._engine = engine
        self._metrics = metrics
        self._behaviour = behaviour
        self._released = released
        self._chat = chat
        self._include_usage = include_usage
        self._streaming = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = 0
        self._sent = 0
        self._held: list[bytes] | None = None
        self._ended = False
        self._choices: list[tuple[Prompt, Answer, Sequence]] = []
        kind = "chat.completion" if chat else "text_completion"
        self.envelope = {
            "id": identity,
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": "airi-sim",
        }
        chunk = {**self.envelope, "object": f"{kind}.chunk" if chat else kind}
        self._head = f"data: {json.dumps(chunk)[:-1]}, "
        self._tail = ', "usage": null}\n\n' if include_usage else "}\n\n"

    def add(self, prompt: Prompt, answer: Answer) -> None:
        """Add a choice."""
        index = len(self._choices)
        told = split(answer.text) if answer.text else []
        sequence = Sequence(
            prompt.tokens,
            max(len(answer.pieces), 1),
            prompt.followed_by(told) if len(told) == len(answer.pieces) else prompt.hashes,
            on_finish=lambda sequence: self._finished(index, sequence),
        )
        self._choices.append((prompt, answer, sequence))

    async def whole(self) -> None:
        """Answer when every choice is finished."""
        await self._run()
        behaviour = self._behaviour
        if behaviour.disconnect_after is not None or behaviour.end_after is not None:
            self._request.abort()
            return
        if behaviour.stall_after is not None:
            await self._released()
        choices = [self._choice(index, answer) for index, (_, answer, _) in enumerate(self._choices)]
        body = {**self.envelope, "choices": choices}
        if not behaviour.no_usage:
            body["usage"] = self._usage()
        self._request.respond(
            200, JSON_HEADERS, json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        )

    async def stream(self) -> None:
        """Send chunks as the engine makes tokens; the engine's callback writes, no task is woken for a token."""
        self._streaming = True
        self._request.start(200, _STREAM_HEADERS)
        for index, (_, _, sequence) in enumerate(self._choices):
            sequence.on_token = lambda sequence, index=index: self._token(index, sequence)
        await self._run()
        if self._held is not None and not self._ended:
            await self._released()
            for chunk in self._held:
                self._request.write(chunk)
                await self._request.drain()
        if self._ended or self._request.finished:
            return
        if self._include_usage and not self._behaviour.no_usage:
            usage = json.dumps({"choices": [], "usage": self._usage()})[1:-1]
            self._request.write(f"{self._head}{usage}}}\n\n".encode())
        if not self._behaviour.no_done:
            self._request.write(b"data: [DONE]\n\n")
        self._request.finish()

    # --- inside -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._left = len(self._choices)
        try:
            for _, _, sequence in self._choices:
                self._engine.submit(sequence)
            await self._done
        finally:
            for _, _, sequence in self._choices:
                if sequence.finished_at is None and sequence.arrived_at is not None:
                    self._engine.abort(sequence)
                    self._metrics.finished(sequence, "abort")

    def _token(self, index: int, sequence: Sequence) -> None:
        answer = self._choices[index][1]
        position = sequence.generated - 1
        if position == 0 and self._chat:
            self._write(index, '{"role": "assistant", "content": ""}', None)
        if position < len(answer.pieces):
            self._limits()
            self._write(index, self._delta(answer.pieces[position]), None)
            self._sent += 1

    def _finished(self, index: int, sequence: Sequence) -> None:
        answer = self._choices[index][1]
        self._metrics.finished(sequence, "length" if answer.finish_reason == "length" else "stop")
        if self._streaming:
            self._limits()
            self._write(index, "{}" if self._chat else '""', answer.finish_reason)
        self._left -= 1
        if not self._left and not self._done.done():
            self._done.set_result(None)

    def _limits(self) -> None:
        """Misbehave, where it is time to."""
        behaviour, sent = self._behaviour, self._sent
        if self._ended:
            return
        if behaviour.disconnect_after is not None and sent >= behaviour.disconnect_after:
            self._end()
            self._request.abort()
        elif behaviour.end_after is not None and sent >= behaviour.end_after:
            self._end()
            self._request.finish()
        elif behaviour.stall_after is not None and sent >= behaviour.stall_after and self._held is None:
            self._held = []

    def _end(self) -> None:
        """Nothing more is sent, and nothing more is computed."""
        self._ended = True
        if not self._done.done():
            self._done.set_result(None)

    def _write(self, index: int, delta: str, reason: str | None) -> None:
        if self._ended:
            return
        key = "delta" if self._chat else "text"
        ending = "null" if reason is None else f'"{reason}"'
        chunk = (
            f'{self._head}"choices": [{{"index": {index}, "{key}": {delta}, "logprobs": null, '
            f'"finish_reason": {ending}}}]{self._tail}'
        ).encode("utf-8", "replace")
        if self._held is not None:
            self._held.append(chunk)
        else:
            self._request.write(chunk)

    def _delta(self, piece: Piece) -> str:
        text = _escape(piece.text)
        if not self._chat:
            return text
        if piece.tool is None:
            return f'{{"content": {text}}}'
        if piece.first is None:
            return f'{{"tool_calls": [{{"index": {piece.tool}, "function": {{"arguments": {text}}}}}]}}'
        call = piece.first
        return (
            f'{{"tool_calls": [{{"index": {piece.tool}, "id": {_escape(call.id)}, "type": "function", '
            f'"function": {{"name": {_escape(call.name)}, "arguments": {text}}}}}]}}'
        )

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        if not self._chat:
            return {
                "index": index,
                "text": answer.text or "",
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in answer.tool_calls
            ]
        return {"index": index, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}

    def _usage(self) -> dict[str, Any]:
        prompt_tokens = (
            self._choices[0][0].tokens if self._chat else sum([p.tokens for p, _, _ in self._choices])
        )
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": sum([answer.tokens for _, answer, _ in self._choices]),
        }
        lie = self._behaviour.lie_usage
        if isinstance(lie, dict):
            usage |= lie
        elif lie is not None:
            usage = {name: int(value * lie) for name, value in usage.items()}
        usage.setdefault("total_tokens", usage["prompt_tokens"] + usage["completion_tokens"])
        usage["prompt_tokens_details"] = {
            "cached_tokens": min(self._choices[0][2].cached_tokens, prompt_tokens)
        }
        return usage
