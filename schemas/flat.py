"""Avro for flat records, by code generated from the schema.

fastavro encodes 27,000 to 41,000 transactions a second, the generated code several times that: a flat record is
straight-line code without a look at the schema. Property tests hold both to the same bytes.
"""

from collections.abc import Callable
from typing import Any, cast

from schemas.errors import Halt, Quarantine

_SHORT = 8192
"""Texts shorter than this take their length prefix from a table (64 KiB of memory); longer ones compute it."""


def zigzag(value: int) -> bytes:
    """Write an integer as Avro does: zigzag, then seven bits a byte. Source: Avro 1.12, Binary Encoding."""
    rest = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def read_long(data: bytes, position: int) -> tuple[int, int]:
    """Read an Avro integer and give it with the position behind it."""
    byte = data[position]
    position += 1
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return (value >> 1) ^ -(value & 1), position


_LENGTHS = tuple(zigzag(length) for length in range(_SHORT))


def text(value: str) -> bytes:
    """Write a text with its length before it."""
    encoded = value.encode()
    size = len(encoded)
    return (_LENGTHS[size] if size < _SHORT else zigzag(size)) + encoded


Encode = Callable[[Any], bytes]
Decode = Callable[[bytes, int], tuple[Any, int]]


def encoder(schema: dict[str, Any]) -> Encode:
    """Make the function that writes a struct with the schema's field names as Avro.

    Raises: Halt, where the schema is not flat.
    """
    lines = ["def encode(record):", "    parts = []", "    add = parts.append"]
    for entry in schema["fields"]:
        lines += _write(entry["name"], entry["type"])
    lines.append("    return b''.join(parts)")
    return cast(Encode, _compiled(lines, "encode", {"lengths": _LENGTHS, "zigzag": zigzag, "text": text}))


def decoder(schema: dict[str, Any], record: type) -> Decode:
    """Make the function that reads Avro at a position as a struct, and gives the position behind it.

    Raises: Halt, where the schema is not flat; the made function raises Quarantine on bytes that are no such record.
    """
    lines = ["def decode(data, i):", "    try:"]
    for entry in schema["fields"]:
        lines += ["        " + line for line in _read(entry["name"], entry["type"])]
    names = ", ".join(f"_{entry['name']}" for entry in schema["fields"])
    lines += [f"        return record({names}), i"]
    lines += ["    except (IndexError, UnicodeDecodeError) as error:"]
    lines += [f"        raise Quarantine('bytes are no {schema['name']} at position ' + str(i)) from error"]
    return cast(
        Decode, _compiled(lines, "decode", {"record": record, "read_long": read_long, "Quarantine": Quarantine})
    )


def _write(name: str, kind: Any) -> list[str]:
    match kind:
        case "string":
            return [
                f"    v = record.{name}.encode()",
                "    n = len(v)",
                f"    add(lengths[n] if n < {_SHORT} else zigzag(n))",
                "    add(v)",
            ]
        case "boolean":
            return [f"    add(b'\\x01' if record.{name} else b'\\x00')"]
        case ["null", "string"]:
            return [f"    v = record.{name}", "    add(b'\\x00' if v is None else b'\\x02' + text(v))"]
    raise Halt(f"field {name} has type {kind}: only texts and booleans are flat")


def _read(name: str, kind: Any) -> list[str]:
    length = ["n = data[i]; i += 1", "if n > 127: n, i = read_long(data, i - 1); n <<= 1", "j = i + (n >> 1)"]
    take = f"_{name} = data[i:j].decode(); i = j"
    match kind:
        case "string":
            return [*length, take]
        case "boolean":
            return [f"_{name} = data[i] == 1; i += 1"]
        case ["null", "string"]:
            return [
                f"_{name} = None",
                "i += 1",
                "if data[i - 1]:",
                *("    " + line for line in [*length, take]),
            ]
    raise Halt(f"field {name} has type {kind}: only texts and booleans are flat")


def _compiled(lines: list[str], name: str, names: dict[str, Any]) -> Any:
    # The source comes from schemas in this repository alone, never from data.
    exec("\n".join(lines), names)  # noqa: S102
    return names[name]
