"""How many tokens a request would be: an estimate, made here, without asking the model's provider.

The text is cut by OpenAI's ``o200k_base`` encoding, whose file lies in the folder of the installed litellm; other models cut
text a little differently. Images and files count a fixed number. The encoding is loaded (1 s, 60 MB) when first asked for.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.dialects.front import Body
from policies.content import request_texts

if TYPE_CHECKING:
    import tiktoken

_ENCODING = "o200k_base"
_MESSAGE_TOKENS = 4
_REPLY_TOKENS = 3
_MEDIA_TOKENS = 1_000
_COUNTED_CHARS = 2_000_000
"""More text than this is counted by its beginning."""
_MEDIA = frozenset({"image_url", "file", "input_audio", "video_url"})
_encode = msgspec.json.Encoder().encode


def count(chat: Body) -> int:
    """Return about how many tokens a chat request's input has. Takes milliseconds a megabyte: call it in a thread."""
    texts = [slot.text for slot in request_texts(chat)]
    texts += [str(message.get("role")) for message in chat["messages"]]
    if chat.get("tools"):
        texts.append(_encode(chat["tools"]).decode())
    if chat.get("response_format"):
        texts.append(_encode(chat["response_format"]).decode())
    media = sum(1 for part in _parts(chat) if part.get("type") in _MEDIA)
    messages = len(chat["messages"])
    return _text_tokens("\n".join(texts)) + _MESSAGE_TOKENS * messages + _REPLY_TOKENS + _MEDIA_TOKENS * media


def _parts(chat: Body) -> Iterator[dict[str, Any]]:
    for message in chat["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            yield from content


def _text_tokens(text: str) -> int:
    counted = text[:_COUNTED_CHARS]
    tokens = len(_encoding().encode_ordinary(counted))
    return tokens if len(counted) == len(text) else tokens * len(text) // len(counted)


@functools.cache
def _encoding() -> tiktoken.Encoding:
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers"
    # tiktoken would download the file otherwise.
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(folder))
    import tiktoken

    return tiktoken.get_encoding(_ENCODING)
