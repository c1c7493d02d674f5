"""Sets of characters that the recognisers and the holdback of streams share. One meaning of "a run" for all."""

from __future__ import annotations

import string

ASCII_ALNUM = frozenset(string.ascii_letters + string.digits)
DIGITS = frozenset(string.digits)
# Letters of the scripts that put spaces between words: Latin, Greek, Cyrillic. (Chinese or Thai letters do not join a
# run: a sentence without spaces would be held back as if it were one word.)
WORD_LETTERS = frozenset(char for char in map(chr, range(0xC0, 0x530)) if char.isalpha())

ALNUM = string.ascii_letters + string.digits
VALUE = ALNUM + "_-./+~!@#$%^&*?"
"""What a password or a key given after a name (``password: …``) consists of."""
ASCII_RUN = VALUE + ":="
RUN = frozenset(ASCII_RUN) | WORD_LETTERS
"""What an address, a key or a compact account number can consist of; everything else ends it."""

NUMBER_GAP = frozenset(" ().-/x")
"""What may stand between two digits of one written number, after :data:`NORMAL` (x: an extension)."""
NORMAL = str.maketrans(
    {
        "\u00a0": " ",
        "\u202f": " ",
        "\u2010": "-",
        "\u2011": "-",
        "\u2012": "-",
        "\u2013": "-",
        "\u2014": "-",
        "\u2015": "-",
    }
)
"""Non-breaking spaces and typographic dashes, which models like to write, as plain ones (one for one)."""
NUMBER_RUN = DIGITS | NUMBER_GAP | frozenset("+,:") | frozenset(map(chr, NORMAL))


def run_end(text: str, start: int, allowed: str, limit: int) -> int:
    """Return where the run of ``allowed`` characters from ``start`` ends, looking at no more than ``limit``."""
    window = text[start : start + limit]
    return start + len(window) - len(window.lstrip(allowed))


def run_start(text: str, base: int, longest: int) -> int:
    """Return where the :data:`RUN` at the end of ``text`` begins, not before ``base``, at most ``longest`` back."""
    low = max(base, len(text) - longest)
    position = len(text)
    while position > low:
        window = max(low, position - _STEP)
        kept = len(text[window:position].rstrip(ASCII_RUN))
        if kept == 0:
            position = window
        elif text[window + kept - 1] in WORD_LETTERS:
            position = window + kept - 1
        else:
            return window + kept
    return position


_STEP = 64
