"""Anthropic's Messages API in front of any chat model."""

from gateway.dialects.anthropic.front import MessagesFront

__all__ = ["MessagesFront"]
