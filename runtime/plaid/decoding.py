"""Decode JSON of Plaid's: as a struct, with the fields that a struct lacks, and with its fields repaired."""

from collections.abc import Hashable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Raw, Struct

from runtime.plaid import repair
from runtime.plaid.repair import Repair
from schemas.errors import Quarantine, Retry

Answer = TypeVar("Answer")

_EXACT_DECODER = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)
_EXACT_ENCODER = msgspec.json.Encoder(decimal_format="number")


def decode(shape: type[Answer], body: bytes) -> Answer:
    """Decode an answer's JSON as a struct.

    Raises: Retry, where it is no JSON (a proxy's page); Quarantine, where it lacks a field that the struct needs.
    """
    decoder = _decoder(cast(Hashable, shape))
    try:
        try:
            return cast(Answer, decoder.decode(body))
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            return cast(Answer, decoder.decode(repair.text(body)))
    except msgspec.ValidationError as error:
        # msgspec names the field and the types, never a value.
        raise Quarantine(f"Plaid's answer is no {shape.__name__.strip('_')}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Retry("Plaid's answer is no JSON") from error


def repaired(body: bytes, repairs: Mapping[str, Repair], required: frozenset[str]) -> bytes:
    """Return an object's JSON with its fields in the form of Plaid's specification, and the repairs among them."""
    return _EXACT_ENCODER.encode(repair.fields(_EXACT_DECODER.decode(body), repairs, required))


def unknown_fields(fields: dict[str, Raw], shape: type[Struct], nested: tuple[str, type[Struct]] | None) -> str | None:
    """Return the fields that a struct lacks, those of one nested object included, as JSON."""
    unknown = {name: raw for name, raw in fields.items() if name not in shape.__struct_fields__}
    if nested is not None:
        name, inner = nested
        extra = unknown_fields(decode(dict[str, Raw], bytes(fields[name])), inner, None)
        if extra is not None:
            unknown[name] = Raw(extra.encode())
    present = {name: unknown[name] for name in sorted(unknown) if raw_text(unknown[name]) is not None}
    return msgspec.json.encode(present).decode() if present else None


def raw_text(raw: Raw) -> str | None:
    """Return the JSON of a raw field; None where it is null or absent."""
    text = str(raw, "utf-8")
    return None if text in ("null", "") else text


@cache
def _decoder(shape: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)
