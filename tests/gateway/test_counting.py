"""Counting tokens with the file that the installed litellm carries: without importing it and without a network."""

from __future__ import annotations

import os
import subprocess
import sys

_CODE = """
import socket, sys

def refuse(*_):
    raise OSError("a test without a network")

socket.socket.connect = socket.getaddrinfo = refuse
from gateway.dialects.counting import count

print(count({"messages": [{"role": "user", "content": "hello world"}]}))
print(count({"messages": [{"role": "user", "content": "Donaudampfschifffahrt"}]}))
print(any(name.partition(".")[0] == "litellm" for name in sys.modules))
"""


def test_tokens_are_cut_by_litellms_file_without_litellm() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TIKTOKEN_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    short, long, imported = done.stdout.split()
    # "hello", " world", a line end, "user"; four for the message and three for the reply.
    assert int(short) == 4 + 4 + 3
    assert int(long) > int(short), "words of other languages have more pieces: this is no count of words"
    assert imported == "False"
