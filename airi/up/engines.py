"""Inference engines on this machine, known by what they answer on their usual ports.

Only the loopback is asked, only with GET, all ports and questions at once, with short time-outs. A server that
does not identify itself as an engine is left alone, whatever its port.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

USUAL_PORTS = (8000, 8080, 11434, 1234, 30000, 3000)
"""vLLM, llama.cpp, Ollama, LM Studio, SGLang, TGI; each may sit on another's port."""
_TIMEOUT_S = 0.5
_TOTAL_S = 2.0
_ANSWER_LIMIT = 1 << 20
_MODELS_LIMIT = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """What a GET brought: the status, the ``Server`` header and the body, when it was a JSON object."""

    status: int
    server: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that was found: ``kind`` is its name in lower case, ``models`` what it serves."""

    kind: str
    port: int
    models: tuple[str, ...]

    @property
    def url(self) -> str:
        """Its address, without a route."""
        return f"http://127.0.0.1:{self.port}"


Answers = dict[str, Answer]


def _openai_models(answers: Answers) -> tuple[str, ...]:
    entries = answers["/v1/models"].body.get("data") if "/v1/models" in answers else None
    return _names(entries, "id")


def _names(entries: object, key: str) -> tuple[str, ...]:
    if not isinstance(entries, list):
        return ()
    found = (entry.get(key) for entry in entries[:_MODELS_LIMIT] if isinstance(entry, dict))
    return tuple(name for name in found if isinstance(name, str) and name)


def _owner(answers: Answers) -> str:
    entries = answers["/v1/models"].body.get("data") if "/v1/models" in answers else None
    first = entries[0] if isinstance(entries, list) and entries else None
    return str(first.get("owned_by", "")) if isinstance(first, dict) else ""


def _ollama(answers: Answers) -> tuple[str, ...]:
    return _names(answers["/api/tags"].body.get("models"), "name") if "/api/tags" in answers else ()


def _vllm(answers: Answers) -> tuple[str, ...]:
    has_version = "/version" in answers and isinstance(answers["/version"].body.get("version"), str)
    return _openai_models(answers) if has_version and _owner(answers) == "vllm" else ()


def _llama_cpp(answers: Answers) -> tuple[str, ...]:
    models = answers.get("/v1/models")
    named = models is not None and (models.server == "llama.cpp" or _owner(answers) == "llamacpp")
    return _openai_models(answers) if named else ()


def _sglang(answers: Answers) -> tuple[str, ...]:
    info = answers.get("/get_model_info")
    return _openai_models(answers) if info is not None and "model_path" in info.body else ()


def _lm_studio(answers: Answers) -> tuple[str, ...]:
    listing = answers.get("/api/v0/models")
    entries = listing.body.get("data") if listing is not None else None
    if not isinstance(entries, list):
        return ()
    usable = [e for e in entries if isinstance(e, dict) and e.get("type") in ("llm", "vlm", "embeddings")]
    return _names(usable, "id")


def _tgi(answers: Answers) -> tuple[str, ...]:
    info = answers.get("/info")
    if info is None or "max_total_tokens" not in info.body or not isinstance(info.body.get("model_id"), str):
        return ()
    return (info.body["model_id"],)


_SIGNS: tuple[tuple[str, Callable[[Answers], tuple[str, ...]]], ...] = (
    ("ollama", _ollama),
    ("vllm", _vllm),
    ("llama.cpp", _llama_cpp),
    ("sglang", _sglang),
    ("lm-studio", _lm_studio),
    ("tgi", _tgi),
)
QUESTIONS = ("/v1/models", "/version", "/api/tags", "/get_model_info", "/api/v0/models", "/info")


def identify(port: int, answers: Answers) -> Engine | None:
    """Return the engine that gave these answers, or ``None`` when it is none that is known or serves nothing."""
    for kind, sign in _SIGNS:
        models = sign(answers)
        if models:
            return Engine(kind, port, models)
    return None


async def find_engines(ports: Sequence[int] = USUAL_PORTS) -> list[Engine]:
    """Ask all ports at once; return what was found, in the order of ``ports``. Takes at most about 2 s."""
    with ThreadPoolExecutor(len(ports) * 2, thread_name_prefix="find-engines") as pool:
        found = await asyncio.gather(*(_find(port, pool) for port in ports))
    return [engine for engine in found if engine is not None]


async def _find(port: int, pool: ThreadPoolExecutor) -> Engine | None:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), _TIMEOUT_S)
    except (OSError, TimeoutError):
        return None  # nobody listens, as on most ports of most machines
    writer.close()
    loop = asyncio.get_running_loop()
    tasks = {path: loop.run_in_executor(pool, _ask, port, path) for path in QUESTIONS}
    await asyncio.wait(tasks.values(), timeout=_TOTAL_S)
    answers = {path: task.result() for path, task in tasks.items() if task.done()}
    return identify(port, {path: answer for path, answer in answers.items() if answer is not None})


def _ask(port: int, path: str) -> Answer | None:
    """GET one path; ``None`` for anything but a JSON object with status 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        if response.status != 200:
            return None
        body = json.loads(response.read(_ANSWER_LIMIT))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    if not isinstance(body, dict):
        return None
    return Answer(200, response.getheader("Server", ""), body)
