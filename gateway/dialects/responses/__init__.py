"""OpenAI's Responses API in front of any chat model."""

from gateway.dialects.responses.front import ResponsesFront

__all__ = ["ResponsesFront"]
