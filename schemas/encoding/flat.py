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
_SOME_LENGTHS = tuple(b"\x02" + length for length in _LENGTHS)
"""The second branch of a union with null, and the length behind it."""
_STEP = tuple(1 + (size >> 1) if size % 2 == 0 else None for size in range(128))
"""How far it is from a text's length, where that is one byte, to behind the text. An odd byte is a negative length."""


def length(size: int) -> bytes:
    """Write a length."""
    return _LENGTHS[size] if size < _SHORT else zigzag(size)


def text(value: str) -> bytes:
    """Write a text with its length before it."""
    encoded = value.encode()
    return length(len(encoded)) + encoded


Encode = Callable[[Any], bytes]
Decode = Callable[[bytes, int], tuple[Any, int]]
Split = Callable[[bytes], tuple[bytes, ...]]


def encoder(schema: dict[str, Any]) -> Encode:
    """Make the function that writes a struct with the schema's field names as Avro.

    Raises: Halt, where the schema is not flat.
    """
    lines = ["def encode(record):", "    parts = []", "    add = parts.append"]
    for entry in schema["fields"]:
        lines += _write(entry["name"], entry["type"])
    lines.append("    return b''.join(parts)")
    return cast(Encode, _compiled(lines, "encode", {"lengths": _LENGTHS, "some": _SOME_LENGTHS, "zigzag": zigzag}))


def decoder(schema: dict[str, Any], record: type) -> Decode:
    """Make the function that reads Avro at a position as a struct, and gives the position behind it.

    Raises: Halt, where the schema is not flat; the made function raises Quarantine on bytes that are no such record.
    """
    lines = ["def decode(data, i):", "    try:"]
    for entry in schema["fields"]:
        lines += ["        " + line for line in _read(entry["name"], entry["type"])]
    names = ", ".join(f"_{entry['name']}" for entry in schema["fields"])
    lines += [f"        return record({names}), i"]
    lines += ["    except (IndexError, TypeError, UnicodeDecodeError) as error:"]
    lines += [f"        raise Quarantine('bytes are no {schema['name']} at position ' + str(i)) from error"]
    return cast(
        Decode,
        _compiled(lines, "decode", {"record": record, "read_long": read_long, "Quarantine": Quarantine, "STEP": _STEP}),
    )


def splitter(schema: dict[str, Any]) -> Split:
    """Make the function that cuts a record into the bytes of its fields, in order, without reading them.

    Equal bytes are equal values, so two records are compared in half the time that decoding them takes.
    Raises: Halt, where the schema is not flat; the made function raises Quarantine on bytes that are no such record.
    """
    lines = ["def split(data):", "    i = 0", "    try:"]
    for number, entry in enumerate(schema["fields"]):
        lines += [f"        s{number} = i", *("        " + line for line in _pass_over(entry["name"], entry["type"]))]
    starts = [f"s{number}" for number in range(len(schema["fields"]))]
    cut = ", ".join(f"data[{start}:{end}]" for start, end in zip(starts, [*starts[1:], "i"], strict=True))
    lines += ["    except (IndexError, TypeError) as error:"]
    lines += [f"        raise Quarantine('bytes are no {schema['name']}') from error"]
    lines += ["    if i != len(data): raise Quarantine(f'a record ends at byte {i} of {len(data)}')"]
    lines += [f"    return ({cut},)"]
    return cast(Split, _compiled(lines, "split", {"read_long": read_long, "Quarantine": Quarantine, "STEP": _STEP}))


def _pass_over(name: str, kind: Any) -> list[str]:
    text = ["n = data[i]", "if n < 128: i += STEP[n]", "else: n, i = read_long(data, i); i += n"]
    match kind:
        case "string":
            return text
        case "boolean":
            return ["i += 1"]
        case ["null", "string"]:
            return ["i += 1", "if data[i - 1]:", *("    " + line for line in text)]
    raise Halt(f"field {name} has type {kind}: only texts and booleans are flat")


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
            return [
                f"    v = record.{name}",
                "    if v is None:",
                "        add(b'\\x00')",
                "    else:",
                "        v = v.encode()",
                "        n = len(v)",
                f"        add(some[n] if n < {_SHORT} else b'\\x02' + zigzag(n))",
                "        add(v)",
            ]
    raise Halt(f"field {name} has type {kind}: only texts and booleans are flat")


def _read(name: str, kind: Any) -> list[str]:
    text = [
        "n = data[i]",
        "if n < 128: j = i + STEP[n]; i += 1",
        "else: n, i = read_long(data, i); j = i + n",
        f"_{name} = data[i:j].decode(); i = j",
    ]
    match kind:
        case "string":
            return text
        case "boolean":
            return [f"_{name} = data[i] == 1; i += 1"]
        case ["null", "string"]:
            return ["i += 1", "if data[i - 1]:", *("    " + line for line in text), f"else: _{name} = None"]
    raise Halt(f"field {name} has type {kind}: only texts and booleans are flat")


def _compiled(lines: list[str], name: str, names: dict[str, Any]) -> Any:
    # The source comes from schemas in this repository alone, never from data.
    exec("\n".join(lines), names)  # noqa: S102
    return names[name]
