"""Generated parts of docs/events.md, from the table of topics and the schemas. Pure.

A part is between the lines `<!-- begin NAME, made by … -->` and `<!-- end NAME -->`; the rest is written by hand.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from schemas.contract import descriptions, subjects
from schemas.contract.examples import Example, examples
from schemas.encoding import catalogue
from schemas.errors import Quarantine
from schemas.topics import DAY_MS, PARTITIONS_DEFAULT, PUBLIC, Topic, full_name

PREFIX = "tartan."
"""Prefix of topic names in the document: the default."""
_PART = re.compile(r"(<!-- begin (\w+), [^\n]* -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def fill_page(page: str) -> str:
    """Return the page with its parts generated again.

    Raises: Quarantine, where the page lacks a part or has an unknown one.
    """
    names = [match[1] for match in _PART.findall(page)]
    if sorted(names) != sorted(_PARTS):
        raise Quarantine(f"the page has the parts {', '.join(names) or 'none'}, not {', '.join(_PARTS)}")
    return _PART.sub(lambda match: f"{match[1]}\n{_PARTS[match[2]]()}\n{match[3]}", page)


def _topics() -> str:
    rows = ["| topic | key | events | subject, schema ids without a registry | kept |", "|---|---|---|---|---|"]
    ids = {version.schema: version for version in subjects.versions(PREFIX)}
    for topic in PUBLIC:
        known = ", ".join(f"v{ids[schema].version}: {schema}" for schema in topic.schemas)
        days = (topic.retention_ms or 0) // DAY_MS
        rows.append(
            f"| `{full_name(topic, PREFIX)}` | {topic.key} | {', '.join(f'`{kind}`' for kind in topic.event_types)} |"
            f" `{ids[topic.schemas[-1]].subject}`, {known} | {days} days |"
        )
    return "\n".join([*rows, "", f"Partitions of each: {PARTITIONS_DEFAULT} by default, the same for all topics."])


def _events() -> str:
    lines: list[str] = []
    for topic in PUBLIC:
        lines += [f"### Topic `{full_name(topic, PREFIX)}`", ""]
        for kind in topic.event_types:
            lines += [f"#### `{kind}`", "", descriptions.EVENTS[kind], "", *_example(examples(PREFIX)[kind]), ""]
        lines += _fields(topic)
    return "\n".join(lines).rstrip()


def _example(example: Example) -> Iterator[str]:
    yield from (f"Key `{example.key}`, headers:", "", "```")
    yield from (f"{name}: {value}" for name, value in example.headers.items())
    # Nested records have thirty fields, of which most are null and would hide the others.
    value = {
        name: {inner: item for inner, item in field.items() if item is not None} if isinstance(field, dict) else field
        for name, field in example.value.items()
    }
    yield from ("```", "", "Value:", "", "```json", json.dumps(value, indent=2, ensure_ascii=False), "```")


def _fields(topic: Topic) -> Iterator[str]:
    for record in records_of(catalogue.full_schema(topic.schemas[-1])):
        yield from (f"#### Fields of `{record['name']}`", "", "| field | type | meaning |", "|---|---|---|")
        known: Mapping[str, str] = descriptions.RECORDS[record["name"]]
        for entry in record["fields"]:
            yield f"| `{entry['name']}` | {_type(entry['type'])} | {known[entry['name']].replace('|', chr(92) + '|')} |"
        yield ""


def _type(schema: Any) -> str:
    match schema:
        case ["null", other]:
            return f"{_type(other)} or null"
        case {"type": "record", "name": name}:
            return str(name)
        case {"type": "array", "items": items}:
            return f"array of {_type(items)}"
        case {"type": kind, "logicalType": logical}:
            return f"{kind} ({logical})"
    return str(schema).rpartition(".")[2]


def records_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Iterate over all records that a schema declares, each before those that it nests."""
    match schema:
        case list():
            for branch in schema:
                yield from records_of(branch)
        case {"type": "record"}:
            yield schema
            for entry in schema["fields"]:
                yield from records_of(entry["type"])
        case {"items": nested} | {"type": nested}:
            yield from records_of(nested)


_PARTS: Mapping[str, Callable[[], str]] = {"topics": _topics, "events": _events}
