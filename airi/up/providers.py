"""Hosted providers whose keys the environment holds, and a few models of each.

The models are a start, not a catalogue: one small, one large, and one for embeddings where there is one. A test
checks that the installed price map knows each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownProvider:
    """A provider and the variables under which its key (and, for some, another address) usually stand."""

    name: str
    key_variable: str
    base_url: str
    small: str
    large: str
    embed: str | None = None
    dialect: str = "openai"
    base_url_variable: str | None = None
    price_prefix: str = ""
    """What the price map puts before this provider's model names."""

    def price_key(self, model: str) -> str:
        """Return the name under which the price map has ``model``; OpenRouter asks its maker's list price."""
        if self.name == "openrouter":
            return model.rpartition("/")[2]
        return self.price_prefix + model


KNOWN_PROVIDERS = (
    KnownProvider(
        "anthropic",
        "ANTHROPIC_API_KEY",
        "https://api.anthropic.com",
        small="claude-haiku-5-5",
        large="claude-sonnet-5-5",
        dialect="anthropic",
        base_url_variable="ANTHROPIC_BASE_URL",
    ),
    KnownProvider(
        "openai",
        "OPENAI_API_KEY",
        "https://api.openai.com/v1",
        small="gpt-5.4-mini",
        large="gpt-6.1-sol",
        embed="text-embedding-3-small",
        base_url_variable="OPENAI_BASE_URL",
    ),
    KnownProvider(
        "mistral",
        "MISTRAL_API_KEY",
        "https://api.mistral.ai/v1",
        small="mistral-small-latest",
        large="mistral-large-latest",
        embed="mistral-embed",
        price_prefix="mistral/",
    ),
    KnownProvider(
        "deepseek",
        "DEEPSEEK_API_KEY",
        "https://api.deepseek.com/v1",
        small="deepseek-v4-flash",
        large="deepseek-v4-pro",
        price_prefix="deepseek/",
    ),
    KnownProvider(
        "xai",
        "XAI_API_KEY",
        "https://api.x.ai/v1",
        small="grok-4.20-non-reasoning",
        large="grok-4.7",
        price_prefix="xai/",
    ),
    KnownProvider(
        "groq",
        "GROQ_API_KEY",
        "https://api.groq.com/openai/v1",
        small="openai/gpt-oss-20b",
        large="openai/gpt-oss-120b",
        price_prefix="groq/",
    ),
    KnownProvider(
        "together",
        "TOGETHER_API_KEY",
        "https://api.together.xyz/v1",
        small="zai-org/GLM-5.3-Flash",
        large="zai-org/GLM-5.3",
        price_prefix="together_ai/",
    ),
    KnownProvider(
        "openrouter",
        "OPENROUTER_API_KEY",
        "https://openrouter.ai/api/v1",
        small="openai/gpt-5.4-mini",
        large="anthropic/claude-sonnet-5-5",
    ),
)


def providers_in(environment: Mapping[str, str]) -> list[KnownProvider]:
    """Return the providers whose key is set, best first for the aliases ``fast`` and ``smart``."""
    return [provider for provider in KNOWN_PROVIDERS if environment.get(provider.key_variable, "").strip()]
