"""Repair values that Plaid sends in another form than its specification, and name each repair. Pure.

The log keeps what it gets for good, and each reader folds it. So what no reader can hold is repaired before it is
appended, or refused. A repair changes only the form, never an amount, a day or an id that can be read.
"""

import re
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

import msgspec

from schemas.errors import Quarantine
from schemas.log.records import Account, Transaction
from schemas.money import DIGITS_MAX, ISO_LEDGER_SCALE, decimal_text, is_storable
from schemas.times import is_date

REPAIRS = "tartan_repairs"
"""Key in `extra_json` of the repairs of a record: field to reason."""

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u0000|u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""An escape in a JSON string; group 1: NUL or half of a surrogate pair, which neither Avro nor Postgres can hold."""

_WIDE = Context(prec=2 * DIGITS_MAX)


class Unrepairable(Exception):
    """A value that no repair can read; the message names its kind, never the value."""


TEXT_CHARS_MAX = 1_000
"""Longest text of a shortened record: all texts of one together are below changesets.PAYLOAD_BYTES_MAX."""

Repair = Callable[[Any], tuple[Any, str]]
"""Function from a wrong value to the right one and the reason. Raises: Unrepairable, where it cannot be repaired."""


def text(body: bytes) -> bytes:
    """Return an answer's JSON with U+FFFD in place of NUL, lone surrogates and bytes that are no UTF-8."""
    valid = body.decode("utf-8", "replace").encode()
    return _ESCAPE.sub(lambda match: b"\\ufffd" if match[1] else match[0], valid)


def fields(raw: Mapping[str, Any], repairs: Mapping[str, Repair], required: frozenset[str]) -> dict[str, Any]:
    """Return an object's fields, repaired; `extra_json`'s repairs are under REPAIRS.

    `raw`: JSON values with text for numbers' digits (Decimal). `repairs`: by field. A field that cannot be repaired is
    left out.
    Raises: Quarantine, where such a field is `required`.
    """
    repaired: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, value in raw.items():
        repair = repairs.get(name)
        if repair is None:
            repaired[name] = value
            continue
        try:
            repaired[name], reason = repair(value)
        except Unrepairable as error:
            if name in required:
                raise Quarantine(f"Plaid's answer has a field {name} that cannot be read: {error}") from None
            repaired[name], reason = None, str(error)
        if reason:
            reasons[name] = reason
    missing = required - repaired.keys()
    for name in sorted(missing):
        try:
            repaired[name], reasons[name] = repairs[name](None)
        except Unrepairable:
            raise Quarantine(f"Plaid's answer lacks the required field {name}") from None
    return {**repaired, REPAIRS: reasons} if reasons else repaired


def as_text(value: Any) -> tuple[Any, str]:
    """Take a text; a number or boolean becomes its JSON text."""
    if value is None or isinstance(value, str):
        return value, ""
    if isinstance(value, bool):
        return str(value).lower(), "boolean for text"
    if isinstance(value, int | Decimal):
        return str(value), "number for text"
    raise Unrepairable(f"{_kind(value)} for text")


def as_required_text(value: Any) -> tuple[Any, str]:
    """Take a text that must be there."""
    if value in (None, ""):
        raise Unrepairable("nothing for text")
    return as_text(value)


def as_flag(value: Any) -> tuple[Any, str]:
    """Take a boolean; null is false."""
    if isinstance(value, bool):
        return value, ""
    if value is None:
        return False, "null for false"
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true", "text for a boolean"
    raise Unrepairable(f"{_kind(value)} for a boolean")


def as_amount(value: Any) -> tuple[Any, str]:
    """Take a number; a text of one is read exactly, and digits that no row can hold are rounded half to even."""
    if value is None:
        return value, ""
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise Unrepairable(f"{_kind(value)} for a number")
    try:
        amount = Decimal(value)
        text, reason = decimal_text(amount), "text for a number" if isinstance(value, str) else ""
    except (InvalidOperation, Quarantine):
        raise Unrepairable(f"{_kind(value)} that is no finite number") from None
    if not is_storable(text):
        amount = Decimal(text).quantize(Decimal(1).scaleb(-ISO_LEDGER_SCALE), context=_WIDE)
        reason = f"rounded to {ISO_LEDGER_SCALE} decimals"
        if not is_storable(decimal_text(amount)):
            raise Unrepairable("a number beyond 64 bits")
    return amount, reason


def as_required_amount(value: Any) -> tuple[Any, str]:
    """Take a number that must be there."""
    if value is None:
        raise Unrepairable("null for a number")
    return as_amount(value)


def as_date(value: Any) -> tuple[Any, str]:
    """Take a date; a time is cut to its day, and what is no date becomes null."""
    if value is None or (isinstance(value, str) and is_date(value)):
        return value, ""
    if value == "":
        return None, "empty text for a date"
    if isinstance(value, str) and value[10:11] in ("T", " ") and is_date(value[:10]):
        return value[:10], "time for a date"
    raise Unrepairable(f"{_kind(value)} that is no date")


def as_required_date(value: Any) -> tuple[Any, str]:
    """Take a date that must be there."""
    date, reason = as_date(value)
    if date is None:
        raise Unrepairable("nothing for a date")
    return date, reason


def as_object(value: Any) -> tuple[Any, str]:
    """Take an object or null."""
    if value is None or isinstance(value, dict):
        return value, ""
    raise Unrepairable(f"{_kind(value)} for an object")


def nested(repairs: Mapping[str, Repair]) -> Repair:
    """Return a repair of an object by the repairs of its fields."""

    def repair(value: Any) -> tuple[Any, str]:
        whole, _ = as_object(value)
        inner = {} if whole is None else fields(whole, repairs, frozenset())
        reasons = inner.pop(REPAIRS, {})
        return None if whole is None else inner, "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

    return repair


def or_else(repair: Repair, default: Any) -> Repair:
    """Return a repair that puts a default in place of null."""
    return lambda value: (default, "null for a required field") if value is None else repair(value)


_KINDS = MappingProxyType({str: "text", dict: "object", list: "list", bool: "boolean", type(None): "null"})


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "number")


def shortened(record: Transaction | Account) -> Transaction | Account:
    """Return a record that is too large to be published with its long texts cut, and without long JSON and references.

    A cut id would name another thing.
    """
    repairs: dict[str, str] = {}
    values: dict[str, str | None] = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, str) and len(value) > TEXT_CHARS_MAX and name not in ("transaction_id", "account_id"):
            values[name] = None if name.endswith(("_json", "_id")) else value[:TEXT_CHARS_MAX]
            repairs[name] = f"{len(value)} characters are too long"
    extra = values.get("extra_json", record.extra_json)
    known = msgspec.json.decode(extra) if extra else {}
    repairs = {**known.get(REPAIRS, {}), **repairs}
    values["extra_json"] = msgspec.json.encode({**known, REPAIRS: repairs}).decode()
    return msgspec.structs.replace(record, **values)
