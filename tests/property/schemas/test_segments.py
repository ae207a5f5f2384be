"""A segment gives back what was sealed, byte for byte, and nothing else ever."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.log import segments
from schemas.log.segments import Damaged, Record

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
BYTES = st.none() | st.binary(max_size=200)
LARGE = st.integers(min_value=segments.BLOCK_BYTES - 64, max_value=segments.BLOCK_BYTES + 64).map(bytes)
OFFSETS = st.integers(min_value=0, max_value=2**63 - 100)


@st.composite
def runs(draw: st.DrawFn) -> list[Record]:
    """Records of one partition, without holes."""
    first = draw(OFFSETS)
    return [
        Record(
            first + number,
            draw(st.integers(min_value=-1, max_value=2**62)),
            draw(BYTES),
            draw(BYTES | LARGE),
            tuple(draw(st.lists(st.tuples(TEXT, BYTES), max_size=3))),
        )
        for number in range(draw(st.integers(min_value=1, max_value=8)))
    ]


def taken(content: bytes) -> tuple[segments.Header, list[Record]]:
    header, records = segments.decode(content)
    return header, list(records)


@given(runs(), TEXT, st.integers(min_value=0, max_value=1000))
def test_a_segment_gives_what_was_sealed_and_the_same_records_give_the_same_bytes(
    records: Sequence[Record], topic: str, partition: int
) -> None:
    content = segments.encode(topic, partition, records)

    header, found = taken(content)

    assert found == records
    assert (header.topic, header.partition, header.count) == (topic, partition, len(records))
    assert (header.first, header.last) == (records[0].offset, records[-1].offset)
    assert segments.encode(topic, partition, found) == content


@given(runs(), st.data())
def test_a_segment_with_any_byte_changed_or_cut_off_is_damaged_and_gives_no_record(
    records: Sequence[Record], data: st.DataObject
) -> None:
    content = segments.encode("t", 0, records)
    place = data.draw(st.integers(min_value=0, max_value=len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= data.draw(st.integers(min_value=1, max_value=255))

    for damaged in (bytes(flipped), content[:place], content + b"\0"):
        with pytest.raises(Damaged):
            segments.decode(damaged)


@given(st.binary(max_size=300))
def test_bytes_that_are_sealed_but_no_segment_are_damaged_and_nothing_worse(body: bytes) -> None:
    content = segments.MAGIC + body
    with pytest.raises(Damaged):
        taken(content + hashlib.sha256(content).digest())


@given(runs().filter(lambda records: len(records) > 2), st.data())
def test_a_hole_between_offsets_is_refused(records: list[Record], data: st.DataObject) -> None:
    del records[data.draw(st.integers(min_value=1, max_value=len(records) - 2))]

    with pytest.raises(ValueError, match="offset"):
        segments.encode("t", 0, records)
