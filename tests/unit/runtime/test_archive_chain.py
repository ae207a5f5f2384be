"""A chain of manifests: whatever is missing, changed, replaced or reordered is named by its range."""

import msgspec
import pytest

from schemas.log import manifests, segments
from schemas.log.manifests import Fault, Head, Link, Manifest
from schemas.log.segments import Damaged

RANGES = [(0, 9), (10, 14), (15, 29), (30, 31)]


def link(first: int, last: int, previous: str | None, *, content: bytes = b"content") -> Link:
    manifest = Manifest(
        manifests.VERSION,
        "t",
        3,
        first,
        last,
        last - first + 1,
        5,
        6,
        len(content),
        segments.sha256_hex(content),
        "r",
        previous,
    )
    return manifests.decode(msgspec.json.encode(manifest))


def chain(*, content: bytes = b"content") -> list[tuple[int, Link | Damaged]]:
    found: list[tuple[int, Link | Damaged]] = []
    previous = None
    for first, last in RANGES:
        one = link(first, last, previous, content=content)
        found.append((first, one))
        previous = one.sha256
    return found


def head(found: list[tuple[int, Link | Damaged]], place: int = -1) -> Head:
    one = found[place][1]
    assert isinstance(one, Link)
    return Head(one.manifest.first, one.manifest.last, one.sha256)


def ranges(found: list[tuple[int, Link | Damaged]], named: Head | None) -> list[tuple[int, int]]:
    return [(fault.first, fault.last) for fault in manifests.check_chain("t", 3, found, named).faults]


def test_a_whole_chain_has_no_fault_and_ends_behind_its_last_record() -> None:
    whole = manifests.check_chain("t", 3, chain(), head(chain()))

    assert (whole.faults, whole.end, len(whole.links)) == ((), 32, 4)
    assert manifests.check_chain("t", 3, [], None) == manifests.Chain((), ())
    # A crash between a manifest and the head leaves the head behind.
    assert ranges(chain(), head(chain(), 2)) == ranges(chain(), None) == []
    # From the head's manifest on, as those look who only want to add.
    assert manifests.check_chain("t", 3, chain()[2:], head(chain(), 2), start=15).faults == ()


@pytest.mark.parametrize("place", range(4))
def test_a_missing_manifest_is_named_wherever_it_was(place: int) -> None:
    found = chain()
    del found[place]

    assert ranges(found, head(chain())) == [RANGES[place]]


def test_the_chain_that_lost_its_end_is_named_from_there_to_what_the_head_names() -> None:
    assert ranges(chain()[:2], head(chain())) == [(15, 31)]
    assert ranges([], head(chain())) == [(0, 31)]


@pytest.mark.parametrize("place", range(4))
def test_a_manifest_replaced_by_another_of_its_range_is_named(place: int) -> None:
    """Alone, and together with all before it as a chain of its own."""
    other = chain(content=b"another")
    alone, below = chain(), chain()
    alone[place] = other[place]
    below[: place + 1] = other[: place + 1]

    assert RANGES[place] in ranges(alone, head(chain()))
    assert ranges(below, head(chain())) == [RANGES[place]]


def test_swapped_manifests_are_both_named() -> None:
    found = chain()
    found[1], found[2] = (found[1][0], found[2][1]), (found[2][0], found[1][1])

    assert ranges(found, head(chain())) == [RANGES[1], RANGES[2]]


def test_an_unreadable_manifest_is_named_up_to_the_next_one() -> None:
    found = chain()
    found[1] = (found[1][0], Damaged("its manifest cannot be read"))

    assert manifests.check_chain("t", 3, found, head(chain())).faults == (
        Fault("t", 3, 10, 14, "its manifest cannot be read"),
    )
    found = chain()
    found[3] = (found[3][0], Damaged("x"))
    assert ranges(found, head(chain())) == [RANGES[3]]


def test_an_unreadable_head_is_named_with_the_last_segment_and_hides_nothing_else() -> None:
    found = chain()
    found[1] = (found[1][0], Damaged("x"))

    faults = manifests.check_chain("t", 3, found, Damaged("y")).faults

    assert [(fault.first, fault.last, fault.what) for fault in faults] == [(10, 14, "x"), (30, 31, "y")]


def test_a_manifest_of_another_partition_is_named() -> None:
    found = chain()
    one = found[2][1]
    assert isinstance(one, Link)
    moved = msgspec.structs.replace(one.manifest, partition=4)
    found[2] = (15, manifests.decode(msgspec.json.encode(moved)))

    assert ranges(found, head(chain())) == [RANGES[2]]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}'])
def test_what_is_no_manifest_is_damaged(content: bytes) -> None:
    with pytest.raises(Damaged):
        manifests.decode(content)
    with pytest.raises(Damaged):
        manifests.decode_head(content)
