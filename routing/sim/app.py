"""The routes of a simulated replica."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from airi.errors import AiriError, InvalidRequestError, NotFoundError
from airi.http.server import Request
from routing.sim import asked, vectors
from routing.sim.answers import chat_answer, completion_answer
from routing.sim.behaviour import Behaviour, Rules
from routing.sim.errors import SequenceTooLongError
from routing.sim.generation import JSON_HEADERS, Generation
from routing.sim.metrics import exposition
from routing.sim.models import Model, build, prefill
from routing.sim.tokens import Prompt, prompt_of

_MAX_INPUTS = 2048


class Replica:
    """Everything one process serves."""

    def __init__(
        self, name: str, models: list[str], *, speed: float = 1.0, seed: int = 0, kv_blocks: int = 0
    ) -> None:
        self.name = name
        self._models = {model: build(model, speed, seed, kv_blocks) for model in models}
        self._rules = Rules()
        self._random = random.Random(seed)  # noqa: S311  # error rates, not a secret
        self._release: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._healthy = True
        self._served = 0
        self._count = 0
        self._started = int(time.time())
        self._routes: dict[tuple[str, str], Callable[[Request], Coroutine[Any, Any, None]]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/embeddings"): self._embeddings,
            ("GET", "/v1/models"): self._list_models,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/control"): self._show_control,
            ("POST", "/control"): self._set_control,
        }

    async def handle(self, request: Request) -> None:
        """Answer one request; refusals are OpenAI's in form."""
        route = self._routes.get((request.method, request.path))
        try:
            if route is None:
                raise NotFoundError(
                    f"Unknown request URL: {request.method} {request.path}.", code="unknown_url"
                )
            await route(request)
        except AiriError as error:
            if request.started:
                request.abort()
            else:
                _refuse(request, error)

    # --- models -----------------------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> None:
        body = _object(request)
        model = self._model(body, embeds=False)
        behaviour = await self._prepare(request, body, model)
        prompt = prompt_of(asked.segments_of(body), model.name, model.engine.profile.block_tokens)
        room = self._room(model, prompt)
        generation = self._generation(request, body, model, behaviour, chat=True)
        for choice in range(asked.whole_number(body, "n", 1, asked.MAX_CHOICES) or 1):
            generation.add(prompt, chat_answer(model.name, body, behaviour, choice, room))
        await self._generate(generation, body)

    async def _completions(self, request: Request) -> None:
        body = _object(request)
        model = self._model(body, embeds=False)
        texts = asked.prompts_of(body, "prompt")
        behaviour = await self._prepare(request, body, model)
        generation = self._generation(request, body, model, behaviour, chat=False)
        each = asked.whole_number(body, "n", 1, asked.MAX_CHOICES) or 1
        if each * len(texts) > asked.MAX_CHOICES:
            raise InvalidRequestError(f"At most {asked.MAX_CHOICES} choices in all.", param="n")
        for text in texts:
            prompt = prompt_of([text], model.name, model.engine.profile.block_tokens)
            room = self._room(model, prompt)
            for choice in range(each):
                generation.add(prompt, completion_answer(model.name, text, body, behaviour, choice, room))
        await self._generate(generation, body)

    async def _embeddings(self, request: Request) -> None:
        body = _object(request)
        model = self._model(body, embeds=True)
        texts = asked.prompts_of(body, "input")
        if len(texts) > _MAX_INPUTS:
            raise InvalidRequestError(f"input has more than {_MAX_INPUTS} entries.", param="input")
        dimensions = (
            asked.whole_number(body, "dimensions", 1, vectors.MAX_DIMENSIONS) or vectors.DEFAULT_DIMENSIONS
        )
        form = body.get("encoding_format", "float")
        if form not in ("float", "base64"):
            raise InvalidRequestError("encoding_format must be float or base64.", param="encoding_format")
        behaviour = await self._prepare(request, body, model)
        prompts = [prompt_of([text], model.name, model.engine.profile.block_tokens) for text in texts]
        await prefill(model, prompts)
        self._served += 1
        if behaviour.disconnect_after is not None:
            request.abort()
            return
        data = []
        for index, text in enumerate(texts):
            vector = vectors.embed(text, dimensions)
            value = vectors.encode_base64(vector) if form == "base64" else vector
            data.append({"object": "embedding", "index": index, "embedding": value})
        counted = sum([prompt.tokens for prompt in prompts])
        usage = {"prompt_tokens": counted, "total_tokens": counted}
        _respond(request, {"object": "list", "data": data, "model": model.name, "usage": usage})

    async def _list_models(self, request: Request) -> None:
        data = [
            {
                "id": model.name,
                "object": "model",
                "created": self._started,
                "owned_by": "airi-sim",
                "root": model.name,
                "parent": None,
                "max_model_len": model.context_tokens,
            }
            for model in self._models.values()
        ]
        _respond(request, {"object": "list", "data": data})

    # --- operation --------------------------------------------------------------------------------------------

    async def _health(self, request: Request) -> None:
        request.respond(200 if self._healthy else 503, b"x-airi-simulated: true\r\n")

    async def _metrics(self, request: Request) -> None:
        body = exposition([model.metrics for model in self._models.values()])
        request.respond(200, b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n", body)

    async def _show_control(self, request: Request) -> None:
        _respond(request, self._state())

    async def _set_control(self, request: Request) -> None:
        """``clear`` drops all rules, ``release`` lets stalled answers go on, ``health`` sets it; the rest is a rule."""
        body = _object(request)
        if body.pop("clear", False):
            self._rules.clear()
            self._healthy = True
        if body.pop("release", False):
            self._release.set_result(None)
            self._release = asyncio.get_running_loop().create_future()
        self._healthy = bool(body.pop("health", self._healthy))
        if body:
            self._rules.add(body)
        _respond(request, self._state())

    def _state(self) -> dict[str, Any]:
        engines = {
            model.name: {
                "running": model.engine.running,
                "waiting": model.engine.waiting,
                "finished": model.engine.counters.finished_sequences,
                "aborted": model.engine.counters.aborted_sequences,
                "kv_blocks_used": model.engine.blocks.used,
                "kv_blocks_cached": model.engine.blocks.cached,
            }
            for model in self._models.values()
        }
        return {
            "simulated": True,
            "name": self.name,
            "healthy": self._healthy,
            "served": self._served,
            "rules": self._rules.describe(),
            "models": engines,
        }

    # --- inside -----------------------------------------------------------------------------------------------

    def _model(self, body: dict[str, Any], *, embeds: bool) -> Model:
        name = body.get("model")
        model = self._models.get(name) if isinstance(name, str) else None
        if model is None:
            known = ", ".join(self._models)
            raise NotFoundError(
                f"The model {name!r} does not exist; there are {known}.",
                code="model_not_found",
                param="model",
            )
        if model.embeds != embeds:
            fitting = "/v1/embeddings" if model.embeds else "/v1/chat/completions"
            raise InvalidRequestError(f"The model {name} is served on {fitting}.", param="model")
        return model

    async def _prepare(self, request: Request, body: dict[str, Any], model: Model) -> Behaviour:
        """Find the request's script, wait where it says so, fail where it says so."""
        behaviour = asked.behaviour_of(request.header(b"x-sim"), body, self._rules.take(model.name))
        if behaviour.latency_ms > 0:
            await asyncio.sleep(behaviour.latency_ms / 1000)
        fails = behaviour.status is not None and behaviour.status >= 400
        if behaviour.error_rate is not None:
            fails = self._random.random() < behaviour.error_rate
        if fails:
            status = behaviour.status or 500
            raise AiriError(
                behaviour.message or f"The simulated engine was asked to fail with {status}.",
                status=status,
                type="rate_limit_error"
                if status == 429
                else "server_error"
                if status >= 500
                else "invalid_request_error",
                code="simulated_failure",
                retry_after_ms=None if behaviour.retry_after is None else int(behaviour.retry_after * 1000),
            )
        return behaviour

    def _room(self, model: Model, prompt: Prompt) -> int:
        room = model.context_tokens - prompt.tokens
        if room < 1:
            raise SequenceTooLongError(prompt.tokens + 1, model.context_tokens)
        return room

    def _generation(
        self, request: Request, body: dict[str, Any], model: Model, behaviour: Behaviour, *, chat: bool
    ) -> Generation:
        options = body.get("stream_options")
        self._count += 1
        return Generation(
            request,
            model.engine,
            model.metrics,
            model.name,
            behaviour,
            lambda: asyncio.shield(self._release),
            chat=chat,
            include_usage=bool(isinstance(options, dict) and options.get("include_usage")),
            identity=f"{'chatcmpl' if chat else 'cmpl'}-sim-{self.name}-{self._started}-{self._count}",
        )

    async def _generate(self, generation: Generation, body: dict[str, Any]) -> None:
        if body.get("stream"):
            await generation.stream()
        else:
            await generation.whole()
        self._served += 1


def _object(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return body


def _respond(request: Request, body: dict[str, Any]) -> None:
    request.respond(200, JSON_HEADERS, json.dumps(body).encode())


def _refuse(request: Request, error: AiriError) -> None:
    body = {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    headers = JSON_HEADERS
    if error.retry_after_ms is not None:
        headers += b"retry-after: %d\r\n" % -(-error.retry_after_ms // 1000)
    request.respond(error.status, headers, json.dumps(body).encode())
