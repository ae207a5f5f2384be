"""Decode a transaction from Avro in one pass into fold fields and COPY columns.

The decoder is generated from the schema. It cuts the columns from the bytes without making Python texts: a fold over
dicts costs 13 to 28 µs a transaction more.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

from projections.model import pg_copy
from projections.model.transaction_payload import Amount, TransactionPayload
from schemas import money
from schemas.encoding import catalogue, flat
from schemas.errors import Quarantine

# fmt: off
COLUMNS = (
    "account_id", "amount_value", "amount_scale", "currency", "pending", "date", "datetime", "authorized_date",
    "name", "merchant_name", "merchant_entity_id", "logo_url",
    "category_primary", "category_detailed", "category_confidence",
)
# fmt: on
"""Columns of `transactions` with the bank's payload, in the order of the schema's fields."""

ENRICHMENT = frozenset(
    {"merchant_name", "merchant_entity_id", "logo_url", "category_primary", "category_detailed", "category_confidence"}
)

UNCATEGORISED = b"UNCATEGORISED"
"""Ledger category of transactions without a category of the bank."""
NO_CURRENCY = b"XXX"
"""ISO 4217: no currency."""
CACHED_MAX = 100_000
"""Amounts and dates cached in their encoded form, about 400 bytes each; bank data repeats them."""

Decoder = Callable[[bytes, int, int], TransactionPayload]


@cache
def decoder(number: int) -> Decoder:
    """Return the function that decodes a transaction of this schema from `start`, which must end at `end`.

    Raises: Quarantine, where the schema is not a transaction's; the function too, on bytes that are no such record, on
    an amount that does not fit and on an invalid date.
    """
    if number != catalogue.TRANSACTION:
        raise Quarantine(f"schema {number} is none of a transaction that this code reads")
    lines = ["def read(data, i, end):", "    start = i", "    try:"]
    for entry in catalogue.declared_schema(number)["fields"]:
        lines += ["        " + line for line in _field(entry["name"], entry["type"])]
    lines += ["        " + line for line in _ENDING]
    lines += ["    except (IndexError, TypeError, UnicodeDecodeError) as error:"]
    lines += ["        raise Quarantine('bytes are no transaction') from error"]
    names: dict[str, Any] = {
        "read_long": flat.read_long,
        "Quarantine": Quarantine,
        "TransactionPayload": TransactionPayload,
        "STEP": _STEP,
        "HOP": _HOP,
        "LEAP": _LEAP,
        "PREFIX": _PREFIX,
        "length": pg_copy.length,
        "NULL": pg_copy.NULL,
        "TRUE": pg_copy.TRUE,
        "FALSE": pg_copy.FALSE,
        "amounts": _AmountCache(),
        "dates": _DateCache(),
        "join": b"".join,
        "NO_CURRENCY": NO_CURRENCY,
        "UNCATEGORISED": UNCATEGORISED,
        "schema": number,
    }
    # The source comes from the schema in this repository alone, never from data.
    exec("\n".join(lines), names)  # noqa: S102
    return cast(Decoder, names["read"])


def decode(schema: int, payload: bytes) -> TransactionPayload:
    """Decode the stored payload of a row.

    Raises: Quarantine.
    """
    return decoder(schema)(payload, 0, len(payload))


_ENDING = (
    "if i != end: raise Quarantine(f'a transaction ends at byte {i}, its event at {end}')",
    "currency = iso_currency_code or unofficial_currency_code or NO_CURRENCY",
    "amount = amounts[amount, currency]",
    "return TransactionPayload(",
    "    transaction_id.decode(), pending_transaction_id.decode() if pending_transaction_id else None, pending,",
    "    account_id, currency, amount, category_primary or UNCATEGORISED, c_date,",
    "    c_category_primary is not NULL or c_merchant_name is not NULL or c_logo_url is not NULL,",
    "    join((c_account_id, amount.columns, TRUE if pending else FALSE, c_date, c_datetime, c_authorized_date,",
    "          c_name, c_merchant_name, c_merchant_entity_id, c_logo_url, c_category_primary, c_category_detailed,",
    "          c_category_confidence)),",
    "    data[start:end], schema)",
)

# fmt: off
_VALUES = frozenset({
    "transaction_id", "account_id", "amount", "iso_currency_code", "unofficial_currency_code",
    "pending_transaction_id", "category_primary",
})
# fmt: on
"""Fields whose bytes the decoder needs by themselves."""

_TEXTS = frozenset(COLUMNS) - {"amount_value", "amount_scale", "currency", "pending", "date", "authorized_date"}
"""Fields that are a text column."""

_DATES = frozenset({"date", "authorized_date"})

_SHORT = 128
"""Lengths below 64 are one byte as read, twice themselves by zigzag; nearly all texts are so short."""
_STEP = tuple(1 + (size >> 1) if size % 2 == 0 else None for size in range(_SHORT))
"""Distance from a text's one length byte to the end of the text. An odd byte would be a negative length."""
_HOP = tuple(None if step is None else 1 + step for step in _STEP)
"""The same from the byte of a union with null before it."""
_LEAP = tuple(None if low % 2 else 3 + (low & 0x7F) // 2 for low in range(2 * _SHORT))
"""The same where the length has two bytes, by the first one; the second one counts 64 each."""
_PREFIX = tuple(pg_copy.length(size >> 1) for size in range(_SHORT))
"""COPY's length prefix of such a text."""


def _field(name: str, kind: Any) -> list[str]:
    """Return the lines that read one field. `i` is at the field, and behind it afterwards."""
    if kind == "boolean":
        return [f"{name} = data[i] == 1; i += 1"]
    if kind == "string":
        return _text(name, "STEP", 0)
    nothing = [f"{name} = None"] * (name in _VALUES) + [f"c_{name} = NULL"] * (name in _TEXTS | _DATES)
    return [
        "if data[i]:",
        *("    " + line for line in _text(name, "HOP", 1)),
        "else:",
        "    " + "; ".join(["i += 1", *nothing]),
    ]


def _text(name: str, steps: str, before: int) -> list[str]:
    """Return the lines that read a text behind `before` bytes, by its one byte of length or by the general way."""
    length = f"data[i + {before}]" if before else "data[i]"
    if name not in _VALUES | _TEXTS | _DATES:
        # A skipped text may be long: two bytes of length are common.
        return [
            f"n = {length}",
            f"if n < 128: i += {steps}[n]",
            f"elif data[i + {before + 1}] < 128: i += LEAP[n] - {1 - before} + (data[i + {before + 1}] << 6)",
            f"else: n, i = read_long(data, i + {before}); i += n",
        ]
    return [
        f"n = {length}",
        "if n < 128:",
        f"    j = i + {steps}[n]",
        *("    " + line for line in _take(name, "PREFIX[n]", before + 1)),
        "else:",
        f"    n, i = read_long(data, i + {before}); j = i + n",
        *("    " + line for line in _take(name, "length(n)", 0)),
        "i = j",
    ]


def _take(name: str, prefix: str, before: int) -> list[str]:
    """Return the lines that take values and columns from a text between `before` bytes behind `i` and `j`."""
    text = f"data[i + {before}:j]" if before else "data[i:j]"
    lines = []
    if name in _VALUES:
        lines, text = [f"{name} = {text}"], name
    if name in _TEXTS:
        lines.append(f"c_{name} = {prefix} + {text}")
    if name in _DATES:
        lines.append(f"c_{name} = dates[{text}]")
    return lines


class _AmountCache(dict[tuple[bytes, bytes], Amount]):
    def __missing__(self, key: tuple[bytes, bytes]) -> Amount:
        text, currency = key[0].decode(), key[1].decode()
        try:
            decimal = money.parse_decimal(text)
        except ValueError:
            raise Quarantine("an amount is no decimal number") from None
        ledger = abs(money.ledger_amount(decimal, currency))
        columns = pg_copy.int8(decimal.value) + pg_copy.int2(decimal.scale) + pg_copy.text(currency)
        _make_room(self)
        # Zero counts as an outflow: it is posted too, and needs one side or the other.
        amount = self[key] = Amount(columns, decimal.value >= 0, ledger, pg_copy.numeric(ledger))
        return amount


class _DateCache(dict[bytes, bytes]):
    def __missing__(self, key: bytes) -> bytes:
        field = pg_copy.date(key.decode())
        _make_room(self)
        self[key] = field
        return field


def _make_room(cache: dict[Any, Any]) -> None:
    if len(cache) >= CACHED_MAX:
        cache.clear()
