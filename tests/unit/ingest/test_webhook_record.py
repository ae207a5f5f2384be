"""Bodies of genuine webhooks: what cannot be read is no Item, and nothing is raised."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.webhook_record import read_body


@pytest.mark.parametrize(
    "raw", [b"[" * 30_000, b'{"item_id": "\xff"}', b'{"item_id": "\\ud800"}', b'{"webhook_type": []}']
)
def test_a_body_that_cannot_be_read_names_no_item(raw: bytes) -> None:
    fields = read_body(raw)

    assert (fields.item_id, fields.type) == (None, "other")


def test_an_item_id_that_is_no_utf8_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another decoder than today's may let lone surrogates through, as Python's own does.
    monkeypatch.setattr(msgspec.json, "decode", json.loads)

    assert read_body(b'{"item_id": "\\ud800"}').item_id is None


@given(
    st.binary()
    | st.recursive(st.none() | st.text(), lambda inner: st.lists(inner)).map(lambda v: json.dumps(v).encode())
)
def test_no_body_raises(raw: bytes) -> None:
    fields: Any = read_body(raw)

    assert fields.item_id is None or fields.item_id.encode()
