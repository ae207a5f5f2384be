"""The public schemas in a schema registry: made so, and compared. Shell."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import msgspec

from runtime.kafka.registry_client import Registered, Registry
from runtime.settings import Settings
from schemas.contract import subjects
from schemas.contract.subjects import COMPATIBILITY, Version
from schemas.encoding import catalogue, compatibility
from schemas.errors import Quarantine


class Outcome(NamedTuple):
    """What became of one schema. `number` is ours, `id` the registry's."""

    subject: str
    schema: str
    number: int
    id: int
    is_new: bool


async def register(settings: Settings) -> list[Outcome]:
    """Give each subject its level, then register what it lacks, oldest version first.

    Idempotence: what is there stays as it is. One that is killed in between is run again.
    Raises: Retry, Halt, as Registry does; Halt with the registry's reason where it finds a schema incompatible.
    """
    async with Registry(settings) as registry:
        return [outcome async for outcome in _registered(registry, subjects.versions(settings.topic_prefix))]


async def _registered(registry: Registry, versions: Sequence[Version]) -> AsyncIterator[Outcome]:
    for subject in dict.fromkeys(one.subject for one in versions):
        # The level comes first: a version that was registered under a weaker one could break readers for ever.
        if await registry.compatibility(subject) != COMPATIBILITY:
            await registry.set_compatibility(subject, COMPATIBILITY)
    for one in versions:
        text = catalogue.schema_text(one.schema)
        found = await registry.find(one.subject, text)
        number = await registry.register(one.subject, text) if found is None else found.id
        yield Outcome(one.subject, catalogue.FILES[one.schema], one.schema, number, found is None)


async def differences(settings: Settings) -> list[str]:
    """What a registry holds otherwise than the catalogue, a line each: levels, missing, strange, incompatible schemas.

    Raises: Retry, Halt, as Registry does.
    """
    found: list[str] = []
    versions = subjects.versions(settings.topic_prefix)
    async with Registry(settings) as registry:
        for subject in dict.fromkeys(one.subject for one in versions):
            if (level := await registry.compatibility(subject)) != COMPATIBILITY:
                found.append(f"{subject}: compatibility is {level or 'not set'}, not {COMPATIBILITY}")
            ours = [one.schema for one in versions if one.subject == subject]
            found += _differences(subject, ours, await registry.versions(subject))
    return found


def _differences(subject: str, ours: Sequence[int], held: Sequence[Registered]) -> list[str]:
    known = {number: catalogue.normalized(catalogue.full_schema(number)) for number in ours}
    normal = {one.version: _normal(one.text) for one in held}
    strange = [one for one in held if normal[one.version] not in known.values()]
    found = [
        f"{subject}: {catalogue.FILES[number]} is not registered"
        for number, schema in known.items()
        if schema not in normal.values()
    ]
    found += [f"{subject}: version {one.version} (id {one.id}) is no schema of this code" for one in strange]
    named = {catalogue.FILES[number]: catalogue.schema_text(number) for number in ours}
    others = {f"version {one.version} of the registry": one.text for one in strange if normal[one.version] is not None}
    return found + [
        f"{subject}: {pair}"
        for pair in compatibility.incompatible_pairs({**named, **others})
        if not {pair.reader, pair.writer} <= named.keys()
    ]


def _normal(text: str) -> Any:
    """A schema in the form in which it is compared; None where it is none of Avro's."""
    try:
        return catalogue.normalized(msgspec.json.decode(text))
    except (Quarantine, msgspec.DecodeError):
        return None
