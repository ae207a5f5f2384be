"""The sealed changeset: what it holds comes out with the right key, and with nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.encoding import codec
from schemas.errors import Halt, Quarantine
from schemas.log import changesets
from schemas.log.changesets import UserKeys
from schemas.log.records import Cause, Head, Removal
from tests.support.paths import GOLDEN

CASES = GOLDEN / "changeset_v1.json"
KEYS = changesets.user_keys(b"\x07" * 32, 1)
NONCE = b"\x09" * 12
EVENTS = codec.encode_events([("transaction.removed", 3, codec.encode(Removal("T1", "A1")))])


def head() -> Head:
    return Head(
        id=b"0123456789abcdef",
        kind="chained",
        type="sync",
        parent=b"fedcba9876543210",
        item_id="item-1",
        user=2**62 + 1,
        at=1_790_000_000_000_000,
        cause=Cause("webhook", 3, 42, 1_789_999_999_000_000, ["req-1"]),
        key_generation=1,
        base_cursor="before",
        next_cursor="after",
        counts={"transaction.removed": 1},
        fingerprints={"A1": b"\x01\x02"},
        hints_until=42,
    )


def test_a_sealed_changeset_opens_with_its_users_key() -> None:
    envelope = changesets.read(changesets.seal(head(), EVENTS, KEYS, nonce=NONCE))

    assert envelope.head == head()
    assert changesets.unseal(envelope, KEYS) == EVENTS


def test_another_users_key_opens_nothing() -> None:
    envelope = changesets.read(changesets.seal(head(), EVENTS, KEYS, nonce=NONCE))

    with pytest.raises(Quarantine, match="does not open"):
        changesets.unseal(envelope, changesets.user_keys(b"\x08" * 32, 1))


@given(st.data())
def test_no_byte_of_a_record_can_be_changed_unnoticed(data: st.DataObject) -> None:
    value = changesets.seal(head(), EVENTS, KEYS, nonce=NONCE)
    place = data.draw(st.integers(0, len(value) - 1))
    changed = bytearray(value)
    changed[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises((Halt, Quarantine)):
        changesets.unseal(changesets.read(bytes(changed)), KEYS)


@pytest.mark.parametrize(
    "value", [b"", b"T", b"X" * 40, b"T\x63\x00\x00\x00\x01" + b"a" * 40, b"T\x09\xff\xff\xff\xff" + b"a" * 40]
)
def test_a_head_that_cannot_be_read_halts(value: bytes) -> None:
    with pytest.raises(Halt):
        changesets.read(value)


def test_a_record_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changesets, "RECORD_BYTES_MAX", 100)

    with pytest.raises(Quarantine, match="takes"):
        changesets.seal(head(), EVENTS, KEYS, nonce=NONCE)


def test_nothing_sealed_is_readable_in_the_record() -> None:
    value = changesets.seal(head(), EVENTS, KEYS, nonce=NONCE)

    assert b"T1" not in value
    assert b"item-1" in value


def test_an_id_says_where_in_the_chain_and_under_whose_key() -> None:
    def made(keys: UserKeys = KEYS, parent: bytes | None = b"p", cursor: str = "c", events: bytes = EVENTS) -> bytes:
        return changesets.changeset_id(
            keys, parent=parent, base_cursor="b", next_cursor=cursor, state=None, events=events
        )

    ids = [made(), made(changesets.user_keys(b"\x08" * 32, 1)), made(parent=None), made(cursor="d"), made(events=b"")]

    assert made() == made()
    assert len(set(ids)) == len(ids)


def test_the_golden_bytes_of_the_first_version_are_read_for_ever() -> None:
    golden = json.loads(CASES.read_text("utf-8"))

    envelope = changesets.read(bytes.fromhex(golden["value"]))

    assert envelope.head == head()
    assert changesets.unseal(envelope, KEYS) == EVENTS
