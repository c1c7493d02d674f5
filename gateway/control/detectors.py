"""What the detectors find, in the form of OpenAI's moderations; for the gateway's own use (see :mod:`gateway.detectors`)."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from airi.errors import InvalidRequestError
from airi.ids import new_id
from gateway.control.auth import Principal, require
from gateway.control.services import Services
from gateway.detectors import MODEL
from gateway.operations import decode_body
from policies.detectors import Scanner
from policies.detectors.spans import KEY, LABELS, PII, SECRETS

ROUTE = "/internal/detectors/v1/moderations"
CATEGORIES = (*PII, *SECRETS)
_LEAST_SCORE = 0.4
_FLAGGED_SCORE = 0.5
_MAX_INPUTS = 2_048
_MASKED = {label: name for name, label in LABELS.items() if name in CATEGORIES and label != LABELS[KEY]}
_MASKED[LABELS[KEY]] = KEY
"""Labels that a policy of the tenant put in place of a finding on the way here: they count as what they stand for."""


def router(services: Services) -> APIRouter:
    """Return the route."""
    routes = APIRouter(include_in_schema=False)
    caller = Depends(require(services, "models.call", run_tokens=True))

    @routes.post(ROUTE)
    async def moderate(request: Request, who: Principal = caller) -> JSONResponse:
        texts = texts_of(decode_body(await request.body()).get("input"))
        results = await asyncio.to_thread(lambda: [judge(_scanner(), text) for text in texts])
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return JSONResponse({"id": new_id("modr"), "model": MODEL, "results": results, "usage": usage})

    return routes


@cache
def _scanner() -> Scanner:
    """The detectors, compiled by the first call (80 ms) rather than by every start."""
    return Scanner(dict.fromkeys(CATEGORIES, _LEAST_SCORE))


def texts_of(value: Any) -> list[str]:
    """Return the inputs: one text, several, or the parts of one (whose images the detectors cannot see)."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_INPUTS:
        raise InvalidRequestError(
            f"'input' must be a text or a list of 1 to {_MAX_INPUTS:,}.", param="input", code="invalid_type"
        )
    if all(isinstance(item, str) for item in value):
        return value
    parts = [item.get("text") if isinstance(item, dict) else None for item in value]
    if not all(isinstance(part, str) for part in parts):
        raise InvalidRequestError("The detectors look at texts only.", param="input", code="unsupported")
    return ["\n".join(str(part) for part in parts)]


def judge(scanner: Scanner, text: str) -> dict[str, Any]:
    """Return one result: which classes were found, and how surely."""
    scores = dict.fromkeys(CATEGORIES, 0.0)
    for match in scanner.resolve(text):
        scores[match.name] = max(scores[match.name], match.score)
    for label, name in _MASKED.items():
        if label in text:
            scores[name] = 1.0
    categories = {name: score >= _FLAGGED_SCORE for name, score in scores.items()}
    return {
        "flagged": any(categories.values()),
        "categories": categories,
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
    }
