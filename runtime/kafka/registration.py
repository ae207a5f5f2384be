"""Registration of the public schemas in a schema registry, and comparison with it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from runtime.kafka.registry_client import Registered, Registry
from runtime.settings import Settings
from schemas.contract import subjects
from schemas.contract.subjects import COMPATIBILITY
from schemas.encoding import catalogue, compatibility
from schemas.errors import Quarantine


class Outcome(NamedTuple):
    """The outcome of one schema's registration. `number` is the catalogue's, `id` the registry's."""

    subject: str
    schema: str
    number: int
    id: int
    is_new: bool


async def register(settings: Settings) -> list[Outcome]:
    """Set each subject's compatibility level, then register the versions that it lacks, oldest first.

    Idempotence: present versions stay as they are; after a crash the call is simply repeated.
    Raises: Retry, Halt, as Registry does; Halt with the registry's reason where a schema is incompatible.
    """
    versions = subjects.versions(settings.topic_prefix)
    outcomes = []
    async with Registry(settings) as registry:
        for subject in dict.fromkeys(version.subject for version in versions):
            # The level comes first: a version that was registered under a weaker one could break readers for ever.
            if await registry.compatibility(subject) != COMPATIBILITY:
                await registry.set_compatibility(subject, COMPATIBILITY)
        for subject, schema in ((version.subject, version.schema) for version in versions):
            text = catalogue.schema_text(schema)
            registered = await registry.find(subject, text)
            schema_id = await registry.register(subject, text) if registered is None else registered.id
            outcomes.append(Outcome(subject, catalogue.FILES[schema], schema, schema_id, registered is None))
    return outcomes


async def differences(settings: Settings) -> list[str]:
    """Return the differences of a registry from the catalogue: levels, missing, unknown and incompatible schemas.

    Raises: Retry, Halt, as Registry does.
    """
    lines: list[str] = []
    versions = subjects.versions(settings.topic_prefix)
    async with Registry(settings) as registry:
        for subject in dict.fromkeys(version.subject for version in versions):
            if (level := await registry.compatibility(subject)) != COMPATIBILITY:
                lines.append(f"{subject}: compatibility is {level or 'not set'}, not {COMPATIBILITY}")
            numbers = [version.schema for version in versions if version.subject == subject]
            lines += _differences(subject, numbers, await registry.versions(subject))
    return lines


def _differences(subject: str, numbers: Sequence[int], registered: Sequence[Registered]) -> list[str]:
    known = {number: catalogue.normalized(catalogue.full_schema(number)) for number in numbers}
    normal = {version.version: _normal(version.text) for version in registered}
    unknown = [version for version in registered if normal[version.version] not in known.values()]
    lines = [
        f"{subject}: {catalogue.FILES[number]} is not registered"
        for number, schema in known.items()
        if schema not in normal.values()
    ]
    lines += [
        f"{subject}: version {version.version} (id {version.id}) is no schema of this code" for version in unknown
    ]
    ours = {catalogue.FILES[number]: catalogue.schema_text(number) for number in numbers}
    others = {
        f"version {version.version} of the registry": version.text
        for version in unknown
        if normal[version.version] is not None
    }
    return lines + [
        f"{subject}: {pair}"
        for pair in compatibility.incompatible_pairs({**ours, **others})
        if not {pair.reader, pair.writer} <= ours.keys()
    ]


def _normal(text: str) -> Any:
    """Normalize a schema for comparison; None where it is no Avro schema."""
    try:
        return catalogue.normalized(msgspec.json.decode(text))
    except (Quarantine, msgspec.DecodeError):
        return None
