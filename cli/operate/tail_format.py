"""Format of `tartan tail`: read a record of any topic into a line, filter it, and format it for people."""

import datetime
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from aiokafka import ConsumerRecord

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

_DETAILS = {
    topics.TRANSACTIONS.name: (
        "transaction",
        {name: name for name in ("name", "date", "pending", "changed", "id", "version")} | {"account": "account_id"},
    ),
    topics.BALANCES.name: (
        "account",
        {"name": "name", "account": "account_id", "available": "available", "source": "source"},
    ),
    topics.ITEMS.name: (
        "item",
        {"name": "institution_name", "state": "state", "code": "code", "previous_state": "previous_state"},
    ),
}
"""Row of an event of each public topic, and the fields of event and row that a line shows, by their names there."""
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


def read_line(topic: Topic, record: ConsumerRecord) -> Line:
    """Read a record; one that is not in the format of its topic becomes a line of type `broken`."""
    value = record.value or b""
    line = Line(topic.name, record.partition, record.offset, _time_text(record.timestamp * 1000), "broken")
    try:
        fields = _event(topic, record, value) if topic in topics.PUBLIC else _READERS[topic.name](record, value)
    except _UNREADABLE as error:
        has_user = record.key and record.key.isdigit() and topic.key == topics.CHANGESETS.key
        fields = {
            "broken": f"{len(value)} bytes: {str(error) or type(error).__name__}",
            "user_number": int(record.key) if has_user else None,
        }
    return msgspec.structs.replace(line, **fields)


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
    events = []
    for event in line.events:
        data = event["data"]
        fields = [_money(data), *(str(data[name]) for name in _EVENT_FIELDS if name in data)]
        events.append(f"    {event['type']:<24} {' '.join(filter(None, fields))}")
    return "\n".join(printable(text) for text in [" ".join(filter(None, parts)), *events])


def printable(text: str) -> str:
    """Replace characters that a terminal interprets: escape sequences and line ends."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _time_text(time_us: int) -> str:
    return from_micros(time_us).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _event(topic: Topic, record: ConsumerRecord, value: bytes) -> dict[str, Any]:
    event = _decode(topic, value)
    row, details = _DETAILS[topic.name]
    fields = {**event[row], **event}
    known_at = event["known_at"]
    headers = dict(record.headers)
    return {
        "type": headers["ce_type"].decode(),
        "item": fields["item_id"],
        "detail": _without_empty({MONEY: _money(fields), **{name: fields[field] for name, field in details.items()}}),
        "user": (event["tenant"], event["user_id"]),
        "time": _time_text(to_micros(known_at) if isinstance(known_at, datetime.datetime) else known_at),
        "position": headers[HEADER_POSITION].decode(),
    }


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
    raise Quarantine(f"no event of {topic.name} with a schema of this version")


def _changeset(_: ConsumerRecord, value: bytes) -> dict[str, Any]:
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
    return {
        "type": head.type,
        "time": _time_text(head.at),
        "item": head.item_id,
        "user_number": head.user,
        "detail": _without_empty(detail),
    }


def _webhook(record: ConsumerRecord, value: bytes) -> dict[str, Any]:
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
    return {
        "type": kind or "webhook",
        "time": _time_text(webhook.received_at),
        "item": body.get("item_id") or (record.key.decode() if record.key else None),
        "detail": _without_empty({"verified": verified, "stale": webhook.stale or None, "body": missing}),
    }


def _push(record: ConsumerRecord, value: bytes) -> dict[str, Any]:
    message = msgspec.json.decode(value, type=dict[str, Any])
    data = message["data"]
    shown = ("item_id", "amount", "current", "currency", "name", "account_id")
    detail = {MONEY: _money(data), "name": data.get("name"), "account": data.get("account_id")}
    detail |= {name: field for name, field in data.items() if name not in shown}
    return {
        "type": message["event"],
        "item": data.get("item_id"),
        "user_number": int(record.key or b""),
        "detail": _without_empty(detail),
        "position": dict(record.headers)[HEADER_POSITION].decode(),
    }


def _dead_letter(_: ConsumerRecord, value: bytes) -> dict[str, Any]:
    letter = codec.decode(DeadLetter, value)
    source = None if letter.source_offset is None else f"{letter.topic} {letter.partition}@{letter.source_offset}"
    return {
        "type": letter.stage,
        "time": _time_text(letter.at),
        "item": letter.item_id,
        "user_number": int(letter.key) if letter.key and letter.key.isdigit() else None,
        "detail": {"reason": letter.reason, "source": source or letter.topic, "attempts": letter.attempts},
    }


_READERS: dict[str, Callable[[ConsumerRecord, bytes], dict[str, Any]]] = {
    topics.CHANGESETS.name: _changeset,
    topics.WEBHOOKS.name: _webhook,
    topics.PUSH.name: _push,
    topics.DEAD_LETTERS.name: _dead_letter,
}
"""Function that reads the value of a record into fields of a line, by topic."""


def _money(fields: Mapping[str, Any]) -> str | None:
    """Format the amount of a transaction or the balance of an account."""
    amount = fields.get("amount", fields.get("current"))
    names = ("iso_currency_code", "unofficial_currency_code", "currency")
    currency = next((fields[name] for name in names if fields.get(name)), "XXX")
    return None if amount is None else f"{money.display_text(amount, currency)} {currency}"


def _without_empty(detail: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in detail.items() if value not in (None, [], {})}


def _fields(event: Any) -> dict[str, Any]:
    return _without_empty(msgspec.to_builtins(event)) if isinstance(event, msgspec.Struct) else {"decision": event}
