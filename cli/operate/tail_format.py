"""Format of `tartan tail`: read a record of any topic into a line, filter it, and format it for people."""

import datetime
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from ingest.refusals import WebhookRefused
from ingest.verification import verify_record
from schemas import money, topics
from schemas.encoding import codec
from schemas.errors import Halt, Quarantine
from schemas.log import changesets
from schemas.log.changesets import UserKeys
from schemas.log.records import DeadLetter, Webhook
from schemas.times import from_micros, to_micros
from schemas.topics import HEADER_POSITION, Topic

WIRE_BYTES = 5
"""Confluent's wire format: magic 0 and the schema's id in the registry. The id is not used: the topic names schemas."""
MONEY = "money"
"""Detail that holds an amount and its currency."""

_FIRST = {MONEY: 16, "name": 0}
"""First details of a line and their widths, so that amounts are aligned."""
_EVENT_FIELDS = ("name", "date", "transaction_id", "account_id", "item_id", "state", "code", "fields_json", "decision")
"""Fields of an unsealed event that its line shows."""
_UNREADABLE = (Quarantine, Halt, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError)
"""Errors of reading bytes that are not in the format of their topic."""


class RawRecord(NamedTuple):
    """A record as read. Units: `timestamp_ms` since 1970, Kafka's."""

    topic: Topic
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]
    timestamp_ms: int


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """Content of a record. `user`: tenant and the application's id; `user_number`: the user's number in topics."""

    topic: str
    partition: int
    offset: int
    time: str
    type: str
    position: str | None = None
    user: tuple[str, str] | None = None
    user_number: int | None = None
    item: str | None = None
    detail: dict[str, Any] = {}
    events: list[dict[str, Any]] = []
    broken: str | None = None


class RecordFilter(NamedTuple):
    """Selects records of a user, by either id or an Item, and of one Item; None selects all."""

    user: tuple[str, str] | None = None
    user_number: int | None = None
    items_of_user: frozenset[str] = frozenset()
    item: str | None = None

    def shows(self, line: Line) -> bool:
        """Return whether the filter selects a record; one without user and Item only where nothing is filtered."""
        if self.item is not None and line.item != self.item:
            return False
        if self.user_number is None:
            return True
        return self.user_number == line.user_number or self.user == line.user or line.item in self.items_of_user


def read_line(record: RawRecord) -> Line:
    """Read a record; one that is not in the format of its topic becomes a line of type `broken`."""
    try:
        return _READERS[record.topic.name](record, record.value or b"")
    except _UNREADABLE as error:
        has_user = record.key and record.key.isdigit() and record.topic.key == topics.CHANGESETS.key
        broken = f"{len(record.value or b'')} bytes: {str(error) or type(error).__name__}"
        return _line(record, "broken", broken=broken, user_number=int(record.key or b"") if has_user else None)


def unseal_line(line: Line, value: bytes, keys: UserKeys) -> Line:
    """Add the decrypted events of a changeset to its line.

    Raises: Quarantine, where they cannot be decrypted or decoded.
    """
    block = changesets.unseal(changesets.read(value), keys)
    events = [{"type": event.type, "data": _fields(codec.decode_event(event))} for event in codec.decode_events(block)]
    return msgspec.structs.replace(line, events=events)


def format_line(line: Line) -> str:
    """Format a line for people, with a changeset's events below it; texts of banks cannot move the cursor."""
    user = ":".join(line.user) if line.user else line.user_number
    parts = [
        line.time,
        f"{line.type:<24}",
        *(str(line.detail[name]).rjust(width) for name, width in _FIRST.items() if name in line.detail),
        *(f"{name}={value}" for name, value in line.detail.items() if name not in _FIRST),
        line.broken,
        f"item={line.item}" if line.item else None,
        f"user={user}" if user else None,
        f"{line.partition}@{line.offset}",
        f"position={line.position}" if line.position else None,
    ]
    events = [f"    {event['type']:<24} {_event_text(event['data'])}" for event in line.events]
    return "\n".join(printable(text) for text in [" ".join(filter(None, parts)), *events])


def printable(text: str) -> str:
    """Replace characters that a terminal interprets: escape sequences and line ends."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _line(record: RawRecord, kind: str, *, time_us: int | None = None, **more: Any) -> Line:
    moment = from_micros(record.timestamp_ms * 1000 if time_us is None else time_us)
    time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Line(record.topic.name, record.partition, record.offset, time, kind, **more)


def _public(record: RawRecord, value: bytes) -> Line:
    event = _decode(record.topic, value)
    item, detail = _EVENTS[record.topic.name](event)
    known_at = event["known_at"]
    return _line(
        record,
        record.headers["ce_type"].decode(),
        item=item,
        detail=_without_empty(detail),
        user=(event["tenant"], event["user_id"]),
        time_us=to_micros(known_at) if isinstance(known_at, datetime.datetime) else known_at,
        position=record.headers[HEADER_POSITION].decode(),
    )


def _transaction(event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    row = event["transaction"]
    return event["item_id"], {
        MONEY: _money(row["amount"], _currency(row)),
        "name": row["name"],
        "date": row["date"],
        "account": row["account_id"],
        "pending": row["pending"],
        "changed": event["changed"],
        "id": event["id"],
        "version": event["version"],
    }


def _balance(event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    row = event["account"]
    return event["item_id"], {
        MONEY: _money(row["current"], _currency(row)),
        "name": row["name"],
        "account": row["account_id"],
        "available": row["available"],
        "source": event["source"],
    }


def _item(event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    row = event["item"]
    return row["item_id"], {
        "name": row["institution_name"],
        "state": row["state"],
        "code": row["code"],
        "previous_state": event["previous_state"],
    }


_EVENTS = {topics.TRANSACTIONS.name: _transaction, topics.BALANCES.name: _balance, topics.ITEMS.name: _item}


def _decode(topic: Topic, value: bytes) -> dict[str, Any]:
    """Decode an event by its topic's newest schema that fits: an older event ends too early for a newer schema."""
    if value[:1] != b"\0":
        raise Quarantine("not in Confluent's wire format")
    for number in reversed(topic.schemas):
        try:
            event, end = codec.decoder(number)(value, WIRE_BYTES)
        except Quarantine:
            continue
        if end == len(value):
            return dict(event)
    raise Quarantine(f"no event of {topic.name} that this code knows")


def _changeset(record: RawRecord, value: bytes) -> Line:
    envelope = changesets.read(value)
    head = envelope.head
    detail = {
        "kind": head.kind,
        "cause": head.cause.kind,
        "by": head.cause.by,
        "state": head.item_state,
        **head.counts,
        "id": head.id.hex(),
        "sealed_bytes": len(envelope.sealed),
    }
    item, user = head.item_id, head.user
    return _line(record, head.type, time_us=head.at, item=item, user_number=user, detail=_without_empty(detail))


def _webhook(record: RawRecord, value: bytes) -> Line:
    webhook = codec.decode(Webhook, value)
    try:
        body = {} if webhook.body is None else msgspec.json.decode(webhook.body, type=dict[str, Any])
    except msgspec.MsgspecError:
        body = {"webhook_code": f"{len(webhook.body or b'')} bytes that are no JSON object"}
    try:
        verify_record(webhook)
        verified = "yes"
    except WebhookRefused as error:
        verified = f"no: {error}"
    kind = ".".join(str(body[name]) for name in ("webhook_type", "webhook_code") if name in body)
    missing = "not kept" if webhook.body is None else None
    detail = _without_empty({"verified": verified, "stale": webhook.stale or None, "body": missing})
    item = body.get("item_id") or (record.key.decode() if record.key else None)
    return _line(record, kind or "webhook", time_us=webhook.received_at, item=item, detail=detail)


def _push(record: RawRecord, value: bytes) -> Line:
    message = msgspec.json.decode(value, type=dict[str, Any])
    data = dict(message["data"])
    item, amount = data.pop("item_id", None), data.pop("amount", data.pop("current", None))
    account = data.pop("account_id", None)
    detail = {MONEY: _money(amount, data.pop("currency", None)), "name": data.pop("name", None), "account": account}
    return _line(
        record,
        message["event"],
        item=item,
        user_number=int(record.key or b""),
        detail=_without_empty({**detail, **data}),
        position=record.headers[HEADER_POSITION].decode(),
    )


def _dead_letter(record: RawRecord, value: bytes) -> Line:
    letter = codec.decode(DeadLetter, value)
    source = None if letter.source_offset is None else f"{letter.topic} {letter.partition}@{letter.source_offset}"
    detail = {"reason": letter.reason, "source": source or letter.topic, "attempts": letter.attempts}
    user = int(letter.key) if letter.key and letter.key.isdigit() else None
    return _line(record, letter.stage, time_us=letter.at, item=letter.item_id, user_number=user, detail=detail)


_READERS: dict[str, Callable[[RawRecord, bytes], Line]] = {
    **{topic.name: _public for topic in topics.PUBLIC},
    topics.CHANGESETS.name: _changeset,
    topics.WEBHOOKS.name: _webhook,
    topics.PUSH.name: _push,
    topics.DEAD_LETTERS.name: _dead_letter,
}


def _money(amount: str | None, currency: str | None) -> str | None:
    if amount is None:
        return None
    return f"{money.display_text(amount, currency or 'XXX')} {currency or 'XXX'}"


def _currency(row: Mapping[str, Any]) -> str | None:
    official: str | None = row.get("iso_currency_code")
    return official or row.get("unofficial_currency_code")


def _without_empty(detail: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in detail.items() if value not in (None, [], {})}


def _fields(event: Any) -> dict[str, Any]:
    return _without_empty(msgspec.to_builtins(event)) if isinstance(event, msgspec.Struct) else {"said": event}


def _event_text(data: Mapping[str, Any]) -> str:
    amount = _money(data.get("amount", data.get("current")), _currency(data))
    return " ".join(filter(None, [amount, *(str(data[name]) for name in _EVENT_FIELDS if name in data)]))
