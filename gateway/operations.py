"""The model routes: what each is called, where it goes upstream and what its body must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from airi.errors import AiriError, InvalidRequestError
from gateway.dialects.anthropic import MessagesFront
from gateway.dialects.front import Front
from gateway.dialects.moderations import ModerationsFront
from gateway.dialects.responses import ResponsesFront
from gateway.errors import error_body
from gateway.repeated_keys import RepeatedKeyError, check_keys

_decode = msgspec.json.Decoder(dict[str, Any]).decode
Body = dict[str, Any]
_FieldCheck = Callable[[str, Any], None]
MAX_CHOICES = 128
MAX_USER = 512


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of model call. ``upstream`` is the route below an upstream's base address."""

    name: str
    path: str
    upstream: str
    check: Callable[[Body], None]
    streams: bool = True
    generates: bool = True
    front: Front | None = None
    """The dialect of the route, when it is not the one spoken upstream."""


def error_form(operation: Operation | None, error: AiriError) -> bytes:
    """Return an error's body in the dialect of the route."""
    if operation is None or operation.front is None:
        return error_body(error)
    return operation.front.error_body(error)


def too_deep() -> InvalidRequestError:
    """Return the 400 for a body that is nested more deeply than can be handled (some 900 levels)."""
    return InvalidRequestError("The body is nested too deeply.", code="invalid_json")


def repeated_key(error: RepeatedKeyError) -> InvalidRequestError:
    """Return the 400 for a body with a key that stands twice in one of its objects."""
    return InvalidRequestError(
        f"The key '{error.key}' stands twice in one object of the body.",
        param=error.key,
        code="duplicate_key",
    )


def decode_body(raw: bytes) -> Body:
    """Return the JSON object of a body; raise :class:`InvalidRequestError` that says what is wrong with it."""
    try:
        body = _decode(raw)
        check_keys(raw, body)
    except RepeatedKeyError as error:
        raise repeated_key(error) from error
    except msgspec.ValidationError as error:
        detail = "a number in it is too large" if "range" in str(error) else "it must be a JSON object"
        raise InvalidRequestError(f"The body cannot be read: {detail}.", code="invalid_json") from error
    except msgspec.DecodeError as error:
        detail = str(error)
        raise InvalidRequestError(f"The body is not valid JSON: {detail}.", code="invalid_json") from error
    except RecursionError as error:
        raise too_deep() from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError("The body is not valid UTF-8.", code="invalid_json") from error
    return body


def _wrong(param: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"'{param}' must be {expected}.", param=param, code="invalid_type")


def _integer(low: int, high: int) -> _FieldCheck:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(name, "a whole number")
        if not low <= value <= high:
            raise InvalidRequestError(
                f"'{name}' must be between {low} and {high}, not {value}.", param=name, code="invalid_value"
            )

    return check


def _number(low: float, high: float) -> _FieldCheck:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, "a number")
        if not low <= value <= high:
            raise InvalidRequestError(
                f"'{name}' must be between {low} and {high}.", param=name, code="invalid_value"
            )

    return check


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false")


def _user(name: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > MAX_USER:
        raise _wrong(name, f"a string of at most {MAX_USER} characters")


def _object(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _wrong(name, "an object")


def _stop(name: str, value: Any) -> None:
    if not isinstance(value, str) and not (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    ):
        raise _wrong(name, "a string or a list of strings")


_GENERATION: dict[str, _FieldCheck] = {
    "stream": _flag,
    "n": _integer(1, MAX_CHOICES),
    "max_tokens": _integer(1, 10_000_000),
    "max_completion_tokens": _integer(1, 10_000_000),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "user": _user,
    "stream_options": _object,
    "stop": _stop,
}
_EMBEDDING: dict[str, _FieldCheck] = {"dimensions": _integer(1, 65_536)}


def _fields(body: Body, checks: dict[str, _FieldCheck]) -> None:
    """Check those of the fields that are there; ``null`` is as good as absent."""
    for name, value in body.items():
        check = checks.get(name)
        if check is not None and value is not None:
            check(name, value)


def _model(body: Body) -> None:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError(
            "You must name a model: 'model' is missing or not a string.", param="model", code="missing_model"
        )
    if len(model) > 256:
        raise _wrong("model", "at most 256 characters long")


def _generation(body: Body) -> None:
    _model(body)
    _fields(body, _GENERATION)


def check_chat(body: Body) -> None:
    """Check the fields of a chat completion that the gateway itself reads; the rest passes unchanged."""
    _generation(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(
            "'messages' must be a list with at least one message.", param="messages", code="invalid_type"
        )
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong(f"messages[{index}]", "an object")
        if not isinstance(message.get("role"), str):
            raise _wrong(f"messages[{index}].role", "a string such as 'user'")
        content = message.get("content")
        if (
            content is not None
            and not isinstance(content, str)
            and not (isinstance(content, list) and all(isinstance(part, dict) for part in content))
        ):
            raise _wrong(f"messages[{index}].content", "a string or a list of parts")
        calls = message.get("tool_calls")
        if calls is not None and not (
            isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
        ):
            raise _wrong(f"messages[{index}].tool_calls", "a list of objects")
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise _wrong("tools", "a list of objects")


def _tokens(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) for item in value
    )


def _text_input(body: Body, name: str) -> None:
    value = body.get(name)
    texts = (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, str) or _tokens(item) for item in value)
    )
    if not (isinstance(value, str) or texts or (_tokens(value) and value)):
        raise _wrong(name, "a string, a list of strings, or token numbers")


def check_completion(body: Body) -> None:
    """Check a legacy text completion."""
    _generation(body)
    _text_input(body, "prompt")


def check_embeddings(body: Body) -> None:
    """Check an embeddings call."""
    _model(body)
    _text_input(body, "input")
    _fields(body, _EMBEDDING)
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise _wrong("encoding_format", "'float' or 'base64'")


def check_moderation(body: Body) -> None:
    """Check a moderation."""
    _model(body)
    value = body.get("input")
    if not isinstance(value, str) and not (
        isinstance(value, list) and value and all(isinstance(item, str | dict) for item in value)
    ):
        raise _wrong("input", "a string, a list of strings, or a list of parts")


CHAT = Operation("chat", "/v1/chat/completions", "/chat/completions", check_chat)
COMPLETION = Operation("text_completion", "/v1/completions", "/completions", check_completion)
EMBEDDINGS = Operation(
    "embeddings", "/v1/embeddings", "/embeddings", check_embeddings, streams=False, generates=False
)
MESSAGES = Operation("chat", "/v1/messages", "/chat/completions", check_chat, front=MessagesFront())
RESPONSES = Operation("chat", "/v1/responses", "/chat/completions", check_chat, front=ResponsesFront())
MODERATIONS = Operation(
    "moderation", "/v1/moderations", "/moderations", check_moderation,
    streams=False, generates=False, front=ModerationsFront(),
)  # fmt: skip
OPERATIONS = {
    operation.path: operation
    for operation in (CHAT, COMPLETION, EMBEDDINGS, MESSAGES, RESPONSES, MODERATIONS)
}
