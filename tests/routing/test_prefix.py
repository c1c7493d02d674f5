"""The prefix index against a plain model of it, and its bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.prefix import MAX_CHARS, PrefixIndex, block_hashes, chars_of


def test_equal_beginnings_have_equal_hashes_and_chains_part_for_good() -> None:
    text = "".join(chr(97 + n % 26) for n in range(6_000))
    one, two = block_hashes(text, 1), block_hashes(text[:3_000] + "X" + text[3_001:], 1)
    same = sum(a == b for a, b in zip(one, two, strict=True))
    assert chars_of(same) <= 3_000
    assert one[:same] == two[:same]
    assert not set(one[same:]) & set(two[same:])
    assert not set(one) & set(block_hashes(text, 2))


def test_hashing_is_bounded() -> None:
    assert block_hashes("x" * 511, 1) == []
    assert len(block_hashes("x" * 10_000_000, 1)) == len(block_hashes("x" * MAX_CHARS, 1)) == 18
    assert chars_of(18) == MAX_CHARS


def test_purge_forgets_one_replica_alone() -> None:
    index = PrefixIndex()
    index.insert([1, 2, 3], 1)
    index.insert([1, 2], 2)
    index.purge(1)
    assert index.match([1, 2, 3], 3) == {2: 2}
    index.purge(2)
    assert len(index) == 0


def test_a_replica_never_holds_more_than_its_limit() -> None:
    index = PrefixIndex()
    index.set_limit(1, 64)
    for start in range(0, 10_000, 5):
        index.insert(list(range(start, start + 5)), 1)
        assert len(index) <= 64
    assert index.match([9_995, 9_996], 1) == {1: 2}
    assert index.match([0, 1], 1) == {}


def test_what_is_used_stays() -> None:
    index = PrefixIndex()
    index.set_limit(1, 64)
    for start in range(100, 5_000, 4):
        index.insert([1, 2, 3], 1)
        index.insert(list(range(start, start + 4)), 1)
    assert index.match([1, 2, 3], 1) == {1: 3}


PATHS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.sampled_from([1, 2, 4])), max_size=30
)


@settings(max_examples=100, deadline=None)
@given(PATHS, st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_matching_finds_the_longest_held_beginning(
    paths: list[tuple[list[int], int]], query: list[int]
) -> None:
    """Chained hashes are modelled by tuples of the path so far."""
    index = PrefixIndex()

    def chained(path: list[int]) -> list[int]:
        return [hash(tuple(path[: n + 1])) for n in range(len(path))]

    for path, bit in paths:
        index.insert(chained(path), bit)
    found = index.match(chained(query), 7)
    for bit in (1, 2, 4):
        held = {tuple(path[: n + 1]) for path, owner in paths if owner == bit for n in range(len(path))}
        depth = 0
        while depth < len(query) and tuple(query[: depth + 1]) in held:
            depth += 1
        assert found.get(bit, 0) == depth
