"""International bank account numbers (ISO 13616): the country fixes the length, mod 97 checks the digits."""

from __future__ import annotations

from policies.detectors.characters import ASCII_ALNUM
from policies.detectors.spans import IBAN, Candidate

_SCORE = 0.95
# Total length by country: SWIFT IBAN registry.
LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
    "YE": 30,
}  # fmt: skip
MAX_LENGTH = 33 + 8
"""The longest number, written in groups of four."""


def find(text: str, start: int) -> Candidate | None:
    """Return the account number that begins at ``start``, compact or in groups of four, or ``None``."""
    length = LENGTHS.get(text[start : start + 2].upper())
    if length is None or (start and text[start - 1] in ASCII_ALNUM):
        return None
    position = start
    found: list[str] = []
    for char in text[start : start + MAX_LENGTH]:
        if len(found) == length:
            break
        if char in ASCII_ALNUM:
            found.append(char)
        elif char not in " -" or len(found) % 4 or text[position - 1] not in ASCII_ALNUM:
            return None
        position += 1
    if len(found) != length or (position < len(text) and text[position] in ASCII_ALNUM):
        return None
    number = "".join(found)
    digits = "".join(str(int(char, 36)) for char in number[4:] + number[:4])
    return Candidate(start, position, IBAN, _SCORE) if int(digits) % 97 == 1 else None
