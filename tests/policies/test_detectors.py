"""What is found, what is not, and where."""

from __future__ import annotations

import random
import threading

import pytest

from policies.detectors import Scanner, Words
from policies.detectors.spans import (
    CARD,
    EMAIL,
    IBAN,
    KEY,
    LABELS,
    PASSWORD,
    PHONE,
    PII,
    PRIVATE_KEY,
    SECRETS,
    TOKEN,
    WORD,
)
from policies.redaction import mask, mask_json, redact

SCANNER = Scanner(dict.fromkeys((*PII, *SECRETS), 0.5))
PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "MIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy\n" * 20
    + "-----END RSA PRIVATE KEY-----"
)
JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


def found(text: str, scanner: Scanner = SCANNER) -> list[tuple[str, str]]:
    return [(match.name, text[match.start : match.end]) for match in scanner.resolve(text)]


@pytest.mark.parametrize(
    ("text", "name", "match"),
    [
        ("mail john.doe+tag@mail.example.co.uk.", EMAIL, "john.doe+tag@mail.example.co.uk"),
        ("(jürgen@müller.de)", EMAIL, "jürgen@müller.de"),
        ("<a@b.io>", EMAIL, "a@b.io"),
        ("card 4111 1111 1111 1111!", CARD, "4111 1111 1111 1111"),
        ("5500005555555559", CARD, "5500005555555559"),
        ("3782 822463 10005", CARD, "3782 822463 10005"),
        ("no 1234 4111-1111-1111-1111.", CARD, "4111-1111-1111-1111"),
        ("4111\u00a01111\u00a01111\u00a01111", CARD, "4111\u00a01111\u00a01111\u00a01111"),
        ("my card 3598899323053410 is lost", CARD, "3598899323053410"),
        ("GB82 WEST 1234 5698 7654 32", IBAN, "GB82 WEST 1234 5698 7654 32"),
        ("iban de89370400440532013000,", IBAN, "de89370400440532013000"),
        ("ring +46 (0)8 928 571 38 now", PHONE, "+46 (0)8 928 571 38"),
        ("(602)272-9781", PHONE, "(602)272-9781"),
        ("Fax: 345-899-3560x4587", PHONE, "345-899-3560x4587"),
        ("780\u2011999\u20112181", PHONE, "780\u2011999\u20112181"),
        ("03.93.92.16.85", PHONE, "03.93.92.16.85"),
        ("please call me on 9472 7916?", PHONE, "9472 7916"),
        ("416 60 039 office", PHONE, "416 60 039"),
        ("AKIAIOSFODNN7EXAMPLE", KEY, "AKIAIOSFODNN7EXAMPLE"),
        ("key=sk-proj-abcDEF1234567890abcdef;", KEY, "sk-proj-abcDEF1234567890abcdef"),
        ("airi_0123456789abcdef_" + "0f" * 24, KEY, "airi_0123456789abcdef_" + "0f" * 24),
        (f"Bearer {JWT} x", TOKEN, JWT),
        (f"{PEM}\nHello there", PRIVATE_KEY, PEM),
        ('"password": "hunter2xx!"', PASSWORD, "hunter2xx!"),
        ("postgres://app:p4ssw0rd@db/x", PASSWORD, "p4ssw0rd"),
        ("API_KEY=9f8b7c6d5e4f3a2b1c0d", PASSWORD, "9f8b7c6d5e4f3a2b1c0d"),
    ],
)
def test_finds(text: str, name: str, match: str) -> None:
    assert (name, match) in found(text)


@pytest.mark.parametrize(
    "text",
    [
        "icon@2x.png and user@localhost",
        "4111 1111 1111 1112, order 1234567890123456",
        "0.4111111111111111 and a4111111111111111b",
        "GB82 WEST 1234 5698 7654 33",
        "2024-11-20 23:17:05 and 20.11.2024, 11/20/2024",
        "10.31.73.20 or 2001:db8::1, version 1.22.333.4444",
        "ISBN 978-3-16-148410-0, ZIP 12345-6789, SSN-like 123-45-6789",
        "total 1,234,567.89 USD, 12 345 678 units",
        "3.14159265358979 2.71828182845904",
        "1700000000000 ms, 1700000000 s, port 8080",
        "550e8400-e29b-41d4-a716-446655440000",
        "task-management-for-everybody risk-assessment-and-more",
        "password: ******** and token: null, secret: yes",
        "the password is required; api_key: <your key>",
        "01 02 03 04 05 06 07 08",
        "rows 23 45 67 89 12 34 56 78 90",
        "git commit 0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_leaves_alone(text: str) -> None:
    assert found(text) == []


def test_scores_below_the_least_do_not_count() -> None:
    assert found("ask for 9472 7916", Scanner({PHONE: 0.2})) == [(PHONE, "9472 7916")]
    assert found("ask for 9472 7916", Scanner({PHONE: 0.5})) == []


def test_only_the_classes_asked_for() -> None:
    assert found("a@b.io 4111111111111111", Scanner({CARD: 0.5})) == [(CARD, "4111111111111111")]
    assert found("a@b.io 4111111111111111", Scanner({})) == []


def test_the_leftmost_then_the_longest_counts() -> None:
    assert found("555-123-4567@sms.example.com") == [(EMAIL, "555-123-4567@sms.example.com")]
    assert found("a@b.io@c.de") == [(EMAIL, "a@b.io")]


def test_words_at_borders_without_case() -> None:
    scanner = Scanner({WORD: 0.5}, Words(["Falcon", "project x", "机密", "οδος"]))
    text = "FALCON falcons Project X, projectx, 绝机密文件 ΟΔΟΣ."
    assert found(text, scanner) == [(WORD, "FALCON"), (WORD, "Project X"), (WORD, "机密"), (WORD, "ΟΔΟΣ")]


@pytest.mark.parametrize("words", [[], [""], ["x" * 65], [str(number) for number in range(10_001)]])
def test_word_lists_are_bounded(words: list[str]) -> None:
    with pytest.raises(ValueError, match="word"):
        Words(words)


def test_positions_are_code_points() -> None:
    text = "héllo 😀 機密 a@b.io"
    (match,) = SCANNER.resolve(text)
    assert text[match.start : match.end] == "a@b.io"


def test_labels_are_no_matches() -> None:
    text = " ".join(LABELS.values())
    assert found(text) == []
    assert found("phone: [PHONE] card [CARD] password: [SECRET]") == []


def test_adversarial_texts_stay_linear() -> None:
    """Doubling the text about doubles the work (counted in candidates, not in seconds)."""
    for unit in (
        "4111 1111 1111 1111 ",
        "sk-a1",
        "a@",
        "GB82 WEST 1234 5698 7654 32 ",
        "-----BEGIN PRIVATE KEY-----",
        "+1 2",
    ):
        once, twice = SCANNER.candidates(unit * 200), SCANNER.candidates(unit * 400)
        assert len(twice) <= 2 * len(once) + 10


def test_the_prefilter_misses_nothing_the_recognisers_find() -> None:
    """A match found in a longer text is found alone too, within its context."""
    rng = random.Random(5)
    from tests.policies import documents_random as documents

    for _ in range(100):
        text = documents.text(rng)
        for match in SCANNER.candidates(text):
            context = text[max(0, match.start - 96) : match.start + 640]
            shift = max(0, match.start - 96)
            again = [(m.start + shift, m.name) for m in SCANNER.candidates(context)]
            assert (match.start, match.name) in again


def test_threads_share_a_scanner() -> None:
    wrong: list[object] = []

    def work() -> None:
        wrong.extend(1 for _ in range(200) if found("mail a@b.io now") != [(EMAIL, "a@b.io")])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_mask() -> None:
    assert mask("a@b.io, +46 8 928 571 38, password: hunter2xx!") == "[EMAIL], [PHONE], password: [SECRET]"
    assert (
        mask_json('{"to": "a\\u0040b.io", "card": 4111111111111111}') == '{"to": "[EMAIL]", "card": "[CARD]"}'
    )
    assert redact("\ud83d a@b.io", SCANNER) == "\ud83d [EMAIL]"
