"""Avro for flat records, by code generated from the schema. Pure.

fastavro encodes 27,000 to 41,000 transactions a second, the generated code several times that: a flat record is
straight-line code that never reads the schema. Property tests hold both to the same bytes.
"""

import textwrap
from collections.abc import Callable, Mapping
from typing import Any, cast

from schemas.errors import Halt, Quarantine

_SHORT = 8192
"""Texts shorter than this have their length prefix in a table (64 KiB of memory)."""


def zigzag(value: int) -> bytes:
    """Return an integer in Avro: zigzag, then seven bits a byte. Source: Avro 1.12, Binary Encoding."""
    rest = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def read_long(data: bytes, position: int) -> tuple[int, int]:
    """Read an Avro integer; return it and the position behind it."""
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
"""Bytes of a text with its length of one byte. None: an odd byte is a negative length."""


def length(size: int) -> bytes:
    """Return a length in Avro."""
    return _LENGTHS[size] if size < _SHORT else zigzag(size)


def text(value: str) -> bytes:
    """Return a text in Avro: its length, then its UTF-8 bytes."""
    encoded = value.encode()
    return length(len(encoded)) + encoded


Encode = Callable[[Any], bytes]
Decode = Callable[[bytes, int], tuple[Any, int]]
Split = Callable[[bytes], tuple[bytes, ...]]

_Templates = Mapping[str, str]
"""Source text for a field of each type; `{name}` is the field's name."""

_WRITE: _Templates = {
    "string": f"""
v = record.{{name}}.encode()
n = len(v)
add(lengths[n] if n < {_SHORT} else zigzag(n))
add(v)""",
    "boolean": r"""
add(b'\x01' if record.{name} else b'\x00')""",
    "optional": rf"""
v = record.{{name}}
if v is None:
    add(b'\x00')
else:
    v = v.encode()
    n = len(v)
    add(some[n] if n < {_SHORT} else b'\x02' + zigzag(n))
    add(v)""",
}

_READ_STRING = """
n = data[i]
if n < 128: j = i + STEP[n]; i += 1
else: n, i = read_long(data, i); j = i + n
_{name} = data[i:j].decode(); i = j"""
_READ: _Templates = {
    "string": _READ_STRING,
    "boolean": "\n_{name} = data[i] == 1; i += 1",
    "optional": f"\ni += 1\nif data[i - 1]:{textwrap.indent(_READ_STRING, '    ')}\nelse: _{{name}} = None",
}

_SKIP_STRING = """
n = data[i]
if n < 128: i += STEP[n]
else: n, i = read_long(data, i); i += n"""
_SKIP: _Templates = {
    "string": _SKIP_STRING,
    "boolean": "\ni += 1",
    "optional": f"\ni += 1\nif data[i - 1]:{textwrap.indent(_SKIP_STRING, '    ')}",
}


def encoder(schema: dict[str, Any]) -> Encode:
    """Return a function that writes a struct with the schema's field names as Avro.

    Raises: Halt, where the schema is not flat.
    """
    lines = ["def encode(record):", "    parts = []", "    add = parts.append"]
    lines += [_field(_WRITE, entry, "    ") for entry in schema["fields"]]
    lines.append("    return b''.join(parts)")
    return cast(Encode, _compiled(lines, "encode", {"lengths": _LENGTHS, "some": _SOME_LENGTHS, "zigzag": zigzag}))


def decoder(schema: dict[str, Any], record: type) -> Decode:
    """Return a function that reads a struct at a position, and returns it with the position behind it.

    Raises: Halt, where the schema is not flat; the function raises Quarantine on bytes that are no such record.
    """
    names = ", ".join(f"_{entry['name']}" for entry in schema["fields"])
    lines = ["def decode(data, i):", "    try:"]
    lines += [_field(_READ, entry, "        ") for entry in schema["fields"]]
    lines += [f"        return record({names}), i"]
    lines += ["    except (IndexError, TypeError, UnicodeDecodeError) as error:"]
    lines += [f"        raise Quarantine('bytes are no {schema['name']} at position ' + str(i)) from error"]
    return cast(Decode, _compiled(lines, "decode", {"record": record, **_READERS}))


def splitter(schema: dict[str, Any]) -> Split:
    """Return a function that cuts a record into the bytes of its fields, in order, without reading them.

    Equal bytes are equal values, so two records are compared in half the time that decoding them takes.
    Raises: Halt, where the schema is not flat; the function raises Quarantine on bytes that are no such record.
    """
    lines = ["def split(data):", "    i = 0", "    try:"]
    for number, entry in enumerate(schema["fields"]):
        lines += [f"        s{number} = i", _field(_SKIP, entry, "        ")]
    starts = [f"s{number}" for number in range(len(schema["fields"]))]
    cut = ", ".join(f"data[{start}:{end}]" for start, end in zip(starts, [*starts[1:], "i"], strict=True))
    lines += ["    except (IndexError, TypeError) as error:"]
    lines += [f"        raise Quarantine('bytes are no {schema['name']}') from error"]
    lines += ["    if i != len(data): raise Quarantine(f'a record ends at byte {i} of {len(data)}')"]
    lines += [f"    return ({cut},)"]
    return cast(Split, _compiled(lines, "split", dict(_READERS)))


_READERS: Mapping[str, Any] = {"read_long": read_long, "Quarantine": Quarantine, "STEP": _STEP}


def _field(templates: _Templates, entry: dict[str, Any], indent: str) -> str:
    name, kind = entry["name"], entry["type"]
    shape = "optional" if kind == ["null", "string"] else kind
    if not isinstance(shape, str) or shape not in templates:
        raise Halt(f"field {name} has type {kind}: only texts and booleans are flat")
    return textwrap.indent(templates[shape].strip("\n").format(name=name), indent)


def _compiled(lines: list[str], name: str, names: dict[str, Any]) -> Any:
    # The source comes from schemas in this repository alone, never from data.
    exec("\n".join(lines), names)  # noqa: S102
    return names[name]
