"""Sync request ids: opaque to clients, signed, and sufficient to find the result in any gateway process."""

import base64
import binascii
import datetime
import hashlib
import hmac
from typing import NamedTuple

import msgspec

from gateway.http.problems import not_found
from runtime.settings import Settings
from schemas.times import from_micros, to_micros

REQUEST_CHARS_MAX = 100
_TAG_BYTES = 12

_Body = tuple[int, int, bool, int]


class SyncRequest(NamedTuple):
    """A requested sync.

    `generation`: of the Item's mark. `after`: the Item's last run before it. `asked_at`: by Postgres' clock.
    """

    item_id: str
    generation: int
    after: int
    refresh: bool
    asked_at: datetime.datetime


class SyncRequestIds:
    """Writes and reads the ids. All gateways share one secret, so each reads the ids of the others."""

    def __init__(self, settings: Settings) -> None:
        secret = settings.stream_secret.get_secret_value().encode()
        self._key = hmac.digest(secret, b"tartan/sync-request", hashlib.sha256)

    def write(self, request: SyncRequest) -> str:
        """Encode a request as its id."""
        fields: _Body = (request.generation, request.after, request.refresh, to_micros(request.asked_at))
        body = msgspec.msgpack.encode(fields)
        return base64.urlsafe_b64encode(self._tag(request.item_id, body) + body).rstrip(b"=").decode()

    def read(self, item_id: str, text: str) -> SyncRequest:
        """Decode the id of a request for this Item.

        Raises: Problem 404, where no gateway issued it for this Item.
        """
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if len(text) <= REQUEST_CHARS_MAX else b""
        except (binascii.Error, ValueError):
            raw = b""
        tag, body = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(item_id, body)):
            raise not_found("sync request")
        generation, after, refresh, asked_at_us = msgspec.msgpack.decode(body, type=_Body)
        return SyncRequest(item_id, generation, after, refresh, from_micros(asked_at_us))

    def _tag(self, item_id: str, body: bytes) -> bytes:
        return hmac.digest(self._key, item_id.encode() + b"\0" + body, hashlib.sha256)[:_TAG_BYTES]
