"""Records of every topic as `tartan tail` tells them: what each says, to whom it belongs, and the line for a person."""

import datetime
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from ingest.reasons import Refused
from ingest.verification import verify_again
from schemas import money, topics
from schemas.encoding import codec
from schemas.errors import Halt, Quarantine
from schemas.log import changesets
from schemas.log.changesets import UserKeys
from schemas.log.records import DeadLetter, Webhook
from schemas.times import from_micros, to_micros
from schemas.topics import HEADER_POSITION, Topic

WIRE_BYTES = 5
"""Confluent's wire format: magic 0 and the schema's id. The id is a registry's, so the topic says what follows."""
MONEY = "money"
"""Detail that holds an amount and its currency."""

_STRANGE = (Quarantine, Halt, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError)
"""What reading bytes raises that are not what their topic holds."""


class Raw(NamedTuple):
    """A record as read. Units: `timestamp_ms` since 1970, Kafka's."""

    topic: Topic
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]
    timestamp_ms: int


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a record says. `user` is the tenant and the application's id, `user_number` stands for both in topics."""

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


class Wanted(NamedTuple):
    """Whose records are shown: of a user by either name or an Item of theirs, and of one Item; None is everybody."""

    user: tuple[str, str] | None = None
    user_number: int | None = None
    items_of_user: frozenset[str] = frozenset()
    item: str | None = None

    def shows(self, line: Line) -> bool:
        """Whether a record is among them. One that says neither user nor Item is shown where nothing is asked for."""
        if self.item is not None and line.item != self.item:
            return False
        if self.user_number is None:
            return True
        return self.user_number == line.user_number or self.user == line.user or line.item in self.items_of_user


def line(raw: Raw) -> Line:
    """Tell a record; one that is not what its topic holds is told as broken."""
    number = int(raw.key) if raw.key and raw.key.isdigit() and raw.topic.key == topics.CHANGESETS.key else None
    try:
        return _READERS[raw.topic.name](raw, raw.value or b"")
    except _STRANGE as error:
        why = str(error) or type(error).__name__
        return _line(raw, "broken", broken=f"{len(raw.value or b'')} bytes: {why}", user_number=number)


def unsealed(told: Line, value: bytes, keys: UserKeys) -> Line:
    """The line of a changeset with its events. Raises: Quarantine, where they do not open or do not decode."""
    block = changesets.unseal(changesets.read(value), keys)
    found = [{"type": one.type, "data": _fields(codec.decode_event(one))} for one in codec.decode_events(block)]
    return msgspec.structs.replace(told, events=found)


def shown(told: Line) -> str:
    """A line for a person, events of a changeset below it. What banks and users wrote cannot move the cursor."""
    said = [*(f"{name}={told.detail[name]}" for name in told.detail if name not in _FIRST), told.broken]
    first = [str(told.detail[name]).rjust(width) for name, width in _FIRST.items() if name in told.detail]
    words = [
        told.time,
        f"{told.type:<24}",
        *first,
        *said,
        f"item={told.item}" if told.item else None,
        f"user={':'.join(told.user)}" if told.user else f"user={told.user_number}" if told.user_number else None,
        f"{told.partition}@{told.offset}",
        f"position={told.position}" if told.position else None,
    ]
    below = [f"    {event['type']:<24} {_event_words(event['data'])}" for event in told.events]
    return "\n".join(printable(each) for each in [" ".join(filter(None, words)), *below])


def printable(text: str) -> str:
    """The text with a mark in place of what a terminal would obey: escape sequences, line ends."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


_FIRST = {MONEY: 16, "name": 0}
"""What a line begins with, and in how many columns, so that amounts stand below each other."""


def _line(raw: Raw, kind: str, *, at_us: int | None = None, **more: Any) -> Line:
    moment = from_micros(raw.timestamp_ms * 1000 if at_us is None else at_us)
    time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Line(raw.topic.name, raw.partition, raw.offset, time, kind, **more)


def _public(raw: Raw, value: bytes) -> Line:
    said = _decoded(raw.topic, value)
    item, detail = _EVENTS[raw.topic.name](said)
    at = said["known_at"]
    return _line(
        raw,
        raw.headers["ce_type"].decode(),
        item=item,
        detail=_there(detail),
        user=(said["tenant"], said["user_id"]),
        at_us=to_micros(at) if isinstance(at, datetime.datetime) else at,
        position=raw.headers[HEADER_POSITION].decode(),
    )


def _transaction(said: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    words = said["transaction"]
    return said["item_id"], {
        MONEY: _money(words["amount"], _currency(words)),
        "name": words["name"],
        "date": words["date"],
        "account": words["account_id"],
        "pending": words["pending"],
        "changed": said["changed"],
        "id": said["id"],
        "version": said["version"],
    }


def _balance(said: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    words = said["account"]
    return said["item_id"], {
        MONEY: _money(words["current"], _currency(words)),
        "name": words["name"],
        "account": words["account_id"],
        "available": words["available"],
        "source": said["source"],
    }


def _item(said: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    words = said["item"]
    return words["item_id"], {
        "name": words["institution_name"],
        "state": words["state"],
        "code": words["code"],
        "previous_state": said["previous_state"],
    }


_EVENTS = {topics.TRANSACTIONS.name: _transaction, topics.BALANCES.name: _balance, topics.ITEMS.name: _item}


def _decoded(topic: Topic, value: bytes) -> dict[str, Any]:
    """An event by the newest of its topic's schemas that fits: an older one ends too early for a newer."""
    if value[:1] != b"\0":
        raise Quarantine("not in Confluent's wire format")
    for number in reversed(topic.schemas):
        try:
            said, end = codec.decoder(number)(value, WIRE_BYTES)
        except Quarantine:
            continue
        if end == len(value):
            return dict(said)
    raise Quarantine(f"no event of {topic.name} that this code knows")


def _changeset(raw: Raw, value: bytes) -> Line:
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
    return _line(raw, head.type, at_us=head.at, item=head.item_id, user_number=head.user, detail=_there(detail))


def _webhook(raw: Raw, value: bytes) -> Line:
    record = codec.decode(Webhook, value)
    try:
        body = {} if record.body is None else msgspec.json.decode(record.body, type=dict[str, Any])
    except msgspec.MsgspecError:
        body = {"webhook_code": f"{len(record.body or b'')} bytes that are no JSON object"}
    try:
        verify_again(record)
        verified = "yes"
    except Refused as error:
        verified = f"no: {error}"
    kind = ".".join(str(body[name]) for name in ("webhook_type", "webhook_code") if name in body)
    detail = {"verified": verified, "stale": record.stale or None, "body": "not kept" if record.body is None else None}
    item = body.get("item_id") or (raw.key.decode() if raw.key else None)
    return _line(raw, kind or "webhook", at_us=record.received_at, item=item, detail=_there(detail))


def _push(raw: Raw, value: bytes) -> Line:
    said = msgspec.json.decode(value, type=dict[str, Any])
    data = dict(said["data"])
    item, amount = data.pop("item_id", None), data.pop("amount", data.pop("current", None))
    account = data.pop("account_id", None)
    detail = {MONEY: _money(amount, data.pop("currency", None)), "name": data.pop("name", None), "account": account}
    return _line(
        raw,
        said["event"],
        item=item,
        user_number=int(raw.key or b""),
        detail=_there({**detail, **data}),
        position=raw.headers[HEADER_POSITION].decode(),
    )


def _dead_letter(raw: Raw, value: bytes) -> Line:
    letter = codec.decode(DeadLetter, value)
    source = None if letter.source_offset is None else f"{letter.topic} {letter.partition}@{letter.source_offset}"
    detail = {"reason": letter.reason, "source": source or letter.topic, "attempts": letter.attempts}
    number = int(letter.key) if letter.key and letter.key.isdigit() else None
    return _line(raw, letter.stage, at_us=letter.at, item=letter.item_id, user_number=number, detail=detail)


_READERS: dict[str, Callable[[Raw, bytes], Line]] = {
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


def _currency(words: Mapping[str, Any]) -> str | None:
    official: str | None = words.get("iso_currency_code")
    return official or words.get("unofficial_currency_code")


def _there(detail: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in detail.items() if value not in (None, [], {})}


def _fields(said: Any) -> dict[str, Any]:
    return _there(msgspec.to_builtins(said)) if isinstance(said, msgspec.Struct) else {"said": said}


def _event_words(data: Mapping[str, Any]) -> str:
    """The words of a sealed event that a person looks for."""
    first = _money(data.get("amount", data.get("current")), _currency(data))
    return " ".join(filter(None, [first, *(str(data[name]) for name in _TOLD if name in data)]))


_TOLD = ("name", "date", "transaction_id", "account_id", "item_id", "state", "code", "fields_json", "decision")
