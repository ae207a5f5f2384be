"""User fields of a transaction: stored beside the bank's payload, field by field, and laid over it for readers.

A row's user fields are canonical JSON, `{field: {"at": offset, "value": …}}` with sorted keys, None where the user
never set any. `at` is the offset of the edit, so a field depends on no other field, no bank update and no clock. A
cleared field keeps the value null: where two rows are merged, the later edit counts, also a clearing. Fields of later
versions are preserved. Numbers in values are whole: an amount is decimal text, never a float.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from schemas import money
from schemas.errors import Quarantine
from schemas.log.records import Transaction
from schemas.money import ScaledAmount

CATEGORY, NOTES, TAGS, NAME = "category", "notes", "tags", "name"
DISPLAY_DATE, HIDDEN, SPLITS = "display_date", "hidden", "splits"

NOTES_SEPARATOR = "\n---\n"
"""Between notes of two sides."""

USER_FIELDS_BYTES_MAX = 120 * 1024
"""Most that one transaction's user fields take: the gateway accepts 76 kB for all fields together. An event has them
twice and a push once more: a record that no batch of the producer holds would stop its partition."""

NOTES_BYTES_MAX = 40 * 1024
"""Longest that notes are joined to: two of the longest that the gateway accepts are 32 kB. So any number of merged
transactions takes less than USER_FIELDS_BYTES_MAX, and no later edit can quarantine the Item."""

_VALUE, _AT = "value", "at"


class Split(NamedTuple):
    """A part of a transaction's amount, in a category of its own."""

    category: str
    amount: ScaledAmount


class _PaymentMeta(msgspec.Struct):
    reason: str | None = None


def apply_edit(user_fields: str | None, fields: Mapping[str, Any], offset: int) -> str | None:
    """Lay the fields of an edit over the earlier ones; `offset` is the edit's. None as a value clears the field.

    Raises: Quarantine, where a value has a number that is not whole or a character that no text of Postgres holds, or
    all fields together are longer than USER_FIELDS_BYTES_MAX.
    """
    known = _loaded(user_fields)
    for name, value in fields.items():
        _check(name)
        _check(value)
        known[name] = {_AT: offset, _VALUE: value}
    text = _canonical(known)
    if text is not None and len(text.encode()) > USER_FIELDS_BYTES_MAX:
        raise Quarantine(f"the user fields of a transaction are longer than {USER_FIELDS_BYTES_MAX} bytes")
    return text


def merge(first: str | None, second: str | None) -> str | None:
    """Merge the user fields of two rows of one transaction: the later edit of each field, and the notes of both.

    Notes that are too long together are the later ones; the earlier ones stay in the versions of their row.
    """
    if first is None or second is None or first == second:
        return first if second is None else second
    fields, others = _loaded(first), _loaded(second)
    merged = {**fields, **others}
    for name in fields.keys() & others.keys():
        earlier, later = sorted((fields[name], others[name]), key=lambda entry: (entry[_AT], _dumped(entry[_VALUE])))
        merged[name] = {**later, _VALUE: _joined_notes(earlier, later)} if name == NOTES else later
    return _canonical(merged)


def canonical(stored: str | None) -> str | None:
    """Return user fields as the fold has them, from any JSON text of the same content: Postgres writes its own."""
    return None if stored is None else _canonical(json.loads(stored))


def values(user_fields: str | None) -> dict[str, Any]:
    """Return field to value, without cleared fields."""
    return {name: entry[_VALUE] for name, entry in _loaded(user_fields).items() if entry[_VALUE] is not None}


def values_json(user_fields: str | None) -> str | None:
    """Return the values as events carry them: a JSON object of field to value, or None where there are none."""
    return None if user_fields is None else _canonical(values(user_fields))


def changed_fields(before: str | None, after: str | None) -> list[str]:
    """Return the names of the fields whose values differ, in alphabetical order."""
    if before == after:
        return []
    old, new = values(before), values(after)
    return sorted(name for name in old.keys() | new.keys() if _dumped(old.get(name)) != _dumped(new.get(name)))


def category(overrides: Mapping[str, Any]) -> str | None:
    """Return the user's category, "" where they emptied it; None where the bank's counts."""
    return _text(overrides, CATEGORY)


def splits(overrides: Mapping[str, Any], amount: str, currency: str) -> tuple[Split, ...] | None:
    """Return the user's splits; None where there are none, or they do not add up to the bank's amount in the ledger."""
    entries = overrides.get(SPLITS)
    if not isinstance(entries, list) or not entries:
        return None
    try:
        parts = tuple(Split(entry["category"], money.parse_decimal(entry["amount"])) for entry in entries)
        total = sum(money.ledger_amount(part.amount, currency) for part in parts)
        whole = money.ledger_amount(money.parse_decimal(amount), currency)
    except (Quarantine, ValueError, TypeError, LookupError, AttributeError):
        return None
    scale = money.ledger_scale(currency)
    is_valid = all(isinstance(part.category, str) and part.amount.scale <= scale for part in parts)
    return parts if total == whole and is_valid else None


def effective(bank: Transaction, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a transaction as readers see it, the user's fields over the bank's, with both beside each other.

    `splits_stale`: they do not add up to the bank's amount any more, so its one category counts.
    """
    note = _bank_note(bank)
    has_splits = isinstance(overrides.get(SPLITS), list)
    users_name, users_category = _text(overrides, NAME), category(overrides)
    users_notes, hidden, tags = _text(overrides, NOTES), overrides.get(HIDDEN), overrides.get(TAGS)
    if users_notes:
        notes: str | None = _joined([users_notes] if note is None else [users_notes, note])
    else:  # "" where the user emptied them
        notes = note if users_notes is None else ""
    return {
        NAME: bank.name if users_name is None else users_name,
        CATEGORY: bank.category_primary if users_category is None else users_category,
        NOTES: notes,
        TAGS: tags if isinstance(tags, list) else [],
        DISPLAY_DATE: _text(overrides, DISPLAY_DATE) or bank.date,
        HIDDEN: hidden is True,
        SPLITS: overrides[SPLITS] if has_splits else [],
        "splits_stale": has_splits and splits(overrides, bank.amount, bank.currency) is None,
        "user_fields": dict(overrides),
        "bank": {NAME: bank.name, CATEGORY: bank.category_primary, NOTES: note},
    }


def _bank_note(bank: Transaction) -> str | None:
    if bank.payment_meta_json is None or '"reason"' not in bank.payment_meta_json:
        return None
    try:
        return msgspec.json.decode(bank.payment_meta_json, type=_PaymentMeta).reason or None
    except msgspec.MsgspecError:
        return None


def _joined_notes(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Any:
    texts = [text for text in (earlier[_VALUE], later[_VALUE]) if isinstance(text, str) and text]
    joined = _joined(texts)
    return joined if texts and len(joined.encode()) <= NOTES_BYTES_MAX else later[_VALUE]


def _joined(texts: Sequence[str]) -> str:
    """Join texts in order, each once, also where one was joined from others before."""
    pieces = [piece for text in texts for piece in text.split(NOTES_SEPARATOR)]
    return NOTES_SEPARATOR.join(dict.fromkeys(pieces))


def _text(overrides: Mapping[str, Any], name: str) -> str | None:
    value = overrides.get(name)
    return value if isinstance(value, str) else None


def _check(value: Any) -> None:
    match value:
        case None | bool() | int():
            return
        case str():
            # Half of a surrogate pair has no UTF-8.
            if "\0" in value or value.encode(errors="ignore").decode() != value:
                raise Quarantine("an edit has a character that no text holds")
        case list():
            for entry in value:
                _check(entry)
        case dict():
            for name, entry in value.items():
                _check(name)
                _check(entry)
        case _:
            raise Quarantine("an edit has a number that is not whole")


def _loaded(user_fields: str | None) -> dict[str, Any]:
    return {} if user_fields is None else dict(json.loads(user_fields))


def _canonical(fields: Mapping[str, Any]) -> str | None:
    return _dumped(fields) if fields else None


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
