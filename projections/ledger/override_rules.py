"""What users say about transactions: kept beside the bank's payload, field by field, and laid over them for readers.

A row's user fields are canonical JSON, `{field: {"at": offset, "value": …}}` with sorted keys, None where nothing was
ever said. `at` is the offset that said it, so a field depends on no other field, on no bank update and on no clock.
A cleared field stays with the value null: where two rows turn out to be one, the later word counts, also a clearing.
Fields of later versions are kept as they are. Numbers in values are whole: an amount is decimal text, never a float.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from schemas import money
from schemas.errors import Quarantine
from schemas.log.records import Transaction
from schemas.money import ScaledAmount

CATEGORY, NOTES, TAGS, NAME, DISPLAY_DATE, HIDDEN, SPLITS = (
    "category",
    "notes",
    "tags",
    "name",
    "display_date",
    "hidden",
    "splits",
)

NOTES_SEPARATOR = "\n---\n"
"""Between notes of two sides."""

USER_FIELDS_BYTES_MAX = 120 * 1024
"""Most that one transaction's user fields take: the gateway lets 76 kB through for all fields together. An event
carries them twice and a push once more: a record that no batch of the producer holds would stop its partition."""

NOTES_BYTES_MAX = 40 * 1024
"""Longest that notes are joined to: two of the longest that the gateway lets through are 32 kB. So what transactions
become one, however many, takes less than USER_FIELDS_BYTES_MAX, and no user's next word can quarantine an Item."""

_VALUE, _AT = "value", "at"


class Split(NamedTuple):
    """A part of a transaction's amount, in a category of its own."""

    category: str
    amount: ScaledAmount


class _PaymentMeta(msgspec.Struct):
    reason: str | None = None


def apply_edit(user_fields: str | None, fields: Mapping[str, Any], at: int) -> str | None:
    """Lay what an edit says over what was said before; `at` is its offset. None as a value clears the field.

    Raises: Quarantine, where a value has a number that is not whole or a character that no text of Postgres holds, or
    all fields together are longer than USER_FIELDS_BYTES_MAX.
    """
    known = _loaded(user_fields)
    for name, value in fields.items():
        _check(name)
        _check(value)
        known[name] = {_AT: at, _VALUE: value}
    text = _canonical(known)
    if text is not None and len(text.encode()) > USER_FIELDS_BYTES_MAX:
        raise Quarantine(f"the user fields of a transaction are longer than {USER_FIELDS_BYTES_MAX} bytes")
    return text


def merge(first: str | None, second: str | None) -> str | None:
    """The user fields of two rows that are one transaction: the later word of each field, and the notes of both.

    Notes that are too long together are the later ones; the earlier ones stay in the versions of their row.
    """
    if first is None or second is None or first == second:
        return first if second is None else second
    one, other = _loaded(first), _loaded(second)
    both = {**one, **other}
    for name in one.keys() & other.keys():
        earlier, later = sorted((one[name], other[name]), key=_when)
        both[name] = {**later, _VALUE: _joined_notes(earlier, later)} if name == NOTES else later
    return _canonical(both)


def canonical(stored: str | None) -> str | None:
    """User fields as the fold has them, from any JSON text of the same content: Postgres writes its own."""
    return None if stored is None else _canonical(json.loads(stored))


def values(user_fields: str | None) -> dict[str, Any]:
    """What is said now: field to value, without those that were cleared."""
    return {name: word[_VALUE] for name, word in _loaded(user_fields).items() if word[_VALUE] is not None}


def values_json(user_fields: str | None) -> str | None:
    """What is said now, as events carry it: a JSON object of field to value, or None where nothing is."""
    return None if user_fields is None else _canonical(values(user_fields))


def changed_fields(before: str | None, after: str | None) -> list[str]:
    """The names of the fields of which something else is said, in the order of the alphabet."""
    if before == after:
        return []
    old, new = values(before), values(after)
    return sorted(name for name in old.keys() | new.keys() if _dumped(old.get(name)) != _dumped(new.get(name)))


def category(said_values: Mapping[str, Any]) -> str | None:
    """The user's category, "" where they emptied it; None where the bank's counts."""
    return _text(said_values, CATEGORY)


def splits(said_values: Mapping[str, Any], amount: str, currency: str) -> tuple[Split, ...] | None:
    """The user's splits; None where there are none, or they do not add up to the bank's amount exactly."""
    parts = said_values.get(SPLITS)
    if not isinstance(parts, list) or not parts:
        return None
    try:
        found = tuple(Split(part["category"], money.parse_decimal(part["amount"])) for part in parts)
        sums = sum(money.ledger_amount(part.amount, currency) for part in found)
        whole = money.ledger_amount(money.parse_decimal(amount), currency)
    except (Quarantine, ValueError, TypeError, LookupError, AttributeError):
        return None
    return found if sums == whole and all(isinstance(part.category, str) for part in found) else None


def effective(bank: Transaction, said_values: Mapping[str, Any]) -> dict[str, Any]:
    """A transaction's payload as readers see them, the user's over the bank's, with both beside each other.

    `splits_stale`: they do not add up to the bank's amount any more, so its one category counts.
    """
    note = _bank_note(bank)
    has_splits = isinstance(said_values.get(SPLITS), list)
    users_name, users_category = _text(said_values, NAME), category(said_values)
    hidden, tags = said_values.get(HIDDEN), said_values.get(TAGS)
    return {
        NAME: bank.name if users_name is None else users_name,
        CATEGORY: bank.category_primary if users_category is None else users_category,
        NOTES: _notes(_text(said_values, NOTES), note),
        TAGS: tags if isinstance(tags, list) else [],
        DISPLAY_DATE: _text(said_values, DISPLAY_DATE) or bank.date,
        HIDDEN: hidden is True,
        SPLITS: said_values[SPLITS] if has_splits else [],
        "splits_stale": has_splits and splits(said_values, bank.amount, bank.currency) is None,
        "user_fields": dict(said_values),
        "bank": {NAME: bank.name, CATEGORY: bank.category_primary, NOTES: note},
    }


def _notes(users: str | None, banks: str | None) -> str | None:
    """The user's notes and the bank's below, each once; "" where the user emptied them."""
    if users is None or users == "":
        return banks if users is None else ""
    return _joined([users] if banks is None else [users, banks])


def _bank_note(bank: Transaction) -> str | None:
    if bank.payment_meta_json is None or '"reason"' not in bank.payment_meta_json:
        return None
    try:
        return msgspec.json.decode(bank.payment_meta_json, type=_PaymentMeta).reason or None
    except msgspec.MsgspecError:
        return None


def _joined_notes(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Any:
    texts = [earlier[_VALUE], later[_VALUE]]
    kept = [text for text in texts if isinstance(text, str) and text]
    joined = _joined(kept)
    return joined if kept and len(joined.encode()) <= NOTES_BYTES_MAX else later[_VALUE]


def _joined(texts: Sequence[str]) -> str:
    """Texts in order, each once, also where one was joined from others before."""
    pieces = [piece for text in texts for piece in text.split(NOTES_SEPARATOR)]
    return NOTES_SEPARATOR.join(dict.fromkeys(pieces))


def _when(word: Mapping[str, Any]) -> tuple[int, str]:
    return word[_AT], _dumped(word[_VALUE])


def _text(said_values: Mapping[str, Any], name: str) -> str | None:
    found = said_values.get(name)
    return found if isinstance(found, str) else None


def _check(value: Any) -> None:
    match value:
        case None | bool() | int():
            return
        case str():
            if "\0" in value or not _is_unicode(value):
                raise Quarantine("an edit has a character that no text holds")
        case list():
            for one in value:
                _check(one)
        case dict():
            for name, one in value.items():
                _check(name)
                _check(one)
        case _:
            raise Quarantine("an edit has a number that is not whole")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _loaded(user_fields: str | None) -> dict[str, Any]:
    loaded: dict[str, Any] = {} if user_fields is None else json.loads(user_fields)
    return loaded


def _canonical(fields: Mapping[str, Any]) -> str | None:
    return _dumped(fields) if fields else None


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
