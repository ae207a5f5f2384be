"""The read side of a schema registry, from the catalogue in the code: Confluent's API, paths, bodies and error codes.

Standard clients read the public topics with it where there is no registry. Schemas are no secrets, so it asks for no
key, as the OpenAPI document. Nothing can be registered here: a new schema is a file in the code.
Source: Confluent Schema Registry, Schema Registry API reference.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from gateway import metrics
from runtime.kafka.registry_client import (
    CONTENT_TYPE,
    LEVEL_NOT_FOUND,
    SCHEMA_NOT_FOUND,
    SUBJECT_NOT_FOUND,
    VERSION_NOT_FOUND,
)
from runtime.settings import Settings
from schemas.contract import subjects
from schemas.contract.subjects import COMPATIBILITY, Version
from schemas.encoding import catalogue
from schemas.errors import Quarantine

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
LATEST = ("latest", "-1")
SCHEMA_INVALID, VERSION_INVALID = 42201, 42202
ROOTS = ("subjects", "schemas", "config", "mode", "compatibility", "contexts", "exporters")
"""First parts of the paths of a registry: under them every answer has its form, that there is no such path, too."""

Handle = Callable[["Contract", web.Request], Awaitable[Any]]


class Refused(Exception):
    """A request that is answered with an error of the registry's form."""

    def __init__(self, status: HTTPStatus, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Contract:
    """The schemas of one installation, as a registry shows them."""

    def __init__(self, versions: tuple[Version, ...]) -> None:
        self._versions = versions

    def subjects(self) -> list[str]:
        """All subjects, each once."""
        return list(dict.fromkeys(one.subject for one in self._versions))

    def of_subject(self, subject: str) -> list[Version]:
        """A subject's versions, oldest first. Raises: Refused."""
        found = [one for one in self._versions if one.subject == subject]
        if not found:
            raise Refused(HTTPStatus.NOT_FOUND, SUBJECT_NOT_FOUND, f"Subject '{subject}' not found.")
        return found

    def of_version(self, subject: str, version: str) -> Version:
        """A version by its number, or the latest. Raises: Refused."""
        found = self.of_subject(subject)
        if version in LATEST:
            return found[-1]
        if not (version.isascii() and version.isdigit() and 0 < int(version) < 2**31):
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                VERSION_INVALID,
                f"The specified version '{version}' is not a valid version id. Allowed values are between"
                ' [1, 2^31-1] and the string "latest"',
            )
        for one in found:
            if one.version == int(version):
                return one
        raise Refused(HTTPStatus.NOT_FOUND, VERSION_NOT_FOUND, f"Version {version} not found.")

    def of_id(self, text: str) -> list[Version]:
        """All versions that have this id, which is a number of the catalogue. Raises: Refused."""
        found = [one for one in self._versions if str(one.schema) == text]
        if not found:
            raise Refused(HTTPStatus.NOT_FOUND, SCHEMA_NOT_FOUND, f"Schema {text} not found")
        return found

    def holding(self, subject: str, schema: Any) -> Version:
        """The version of a subject that is this schema, however it is written. Raises: Refused, Quarantine."""
        found = self.of_subject(subject)
        wanted = catalogue.normalized(schema)
        for one in found:
            if catalogue.normalized(catalogue.full_schema(one.schema)) == wanted:
                return one
        raise Refused(HTTPStatus.NOT_FOUND, SCHEMA_NOT_FOUND, "Schema not found")


class _Entry(NamedTuple):
    method: str
    path: str
    handle: Handle


def routes(settings: Settings) -> list[web.RouteDef]:
    """The registry's routes; none where the installation has a registry of its own: its ids would mean others here."""
    if settings.schema_registry_url:
        return []
    contract = Contract(subjects.versions(settings.topic_prefix))
    answered = [web.route(one.method, one.path, _answering(contract, one.handle)) for one in _ENTRIES]
    others = _answering(contract, _no_such)
    return [*answered, *(web.route("*", f"/{root}{{rest:(/.*)?}}", others) for root in ROOTS)]


def _answering(contract: Contract, handle: Handle) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        status, headers = HTTPStatus.OK, HEADERS
        try:
            told = await handle(contract, request)
        except Refused as refused:
            status, told = refused.status, {"error_code": refused.code, "message": refused.message}
            if status is HTTPStatus.METHOD_NOT_ALLOWED:
                headers = {**HEADERS, "Allow": "GET, POST"}
        metrics.REQUESTS.labels("registry", str(status.value)).inc()
        body = told.encode() if isinstance(told, str) else msgspec.json.encode(told)
        return web.Response(body=body, status=status.value, content_type=CONTENT_TYPE, headers=headers)

    return answer


async def _subjects(contract: Contract, _: web.Request) -> list[str]:
    return contract.subjects()


async def _subject_versions(contract: Contract, request: web.Request) -> list[int]:
    return [one.version for one in contract.of_subject(request.match_info["subject"])]


async def _subject_version(contract: Contract, request: web.Request) -> Mapping[str, Any]:
    return _whole(contract.of_version(request.match_info["subject"], request.match_info["version"]))


async def _subject_schema(contract: Contract, request: web.Request) -> str:
    return catalogue.schema_text(
        contract.of_version(request.match_info["subject"], request.match_info["version"]).schema
    )


async def _look_up(contract: Contract, request: web.Request) -> Mapping[str, Any]:
    subject = request.match_info["subject"]
    try:
        return _whole(contract.holding(subject, json.loads(json.loads(await request.read())["schema"])))
    except (Quarantine, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, SCHEMA_INVALID, "The body holds no Avro schema") from error


async def _schema(contract: Contract, request: web.Request) -> Mapping[str, Any]:
    return {"schema": catalogue.schema_text(contract.of_id(request.match_info["id"])[0].schema)}


async def _schema_alone(contract: Contract, request: web.Request) -> str:
    return catalogue.schema_text(contract.of_id(request.match_info["id"])[0].schema)


async def _schema_versions(contract: Contract, request: web.Request) -> list[Mapping[str, Any]]:
    return [{"subject": one.subject, "version": one.version} for one in contract.of_id(request.match_info["id"])]


async def _schema_subjects(contract: Contract, request: web.Request) -> list[str]:
    return [one.subject for one in contract.of_id(request.match_info["id"])]


async def _types(_: Contract, __: web.Request) -> list[str]:
    return ["AVRO"]


async def _level(_: Contract, __: web.Request) -> Mapping[str, str]:
    return {"compatibilityLevel": COMPATIBILITY}


async def _subject_level(contract: Contract, request: web.Request) -> Mapping[str, str]:
    subject = request.match_info["subject"]
    if subject not in contract.subjects() and request.query.get("defaultToGlobal") != "true":
        raise Refused(
            HTTPStatus.NOT_FOUND,
            LEVEL_NOT_FOUND,
            f"Subject '{subject}' does not have subject-level compatibility configured",
        )
    return {"compatibilityLevel": COMPATIBILITY}


async def _mode(_: Contract, __: web.Request) -> Mapping[str, str]:
    return {"mode": "READONLY"}


async def _no_such(_: Contract, request: web.Request) -> Any:
    if request.method in ("GET", "HEAD"):
        raise Refused(HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND, "HTTP 404 Not Found")
    raise Refused(
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.METHOD_NOT_ALLOWED,
        "HTTP 405 Method Not Allowed: schemas are part of the code and cannot be changed here",
    )


def _whole(one: Version) -> Mapping[str, Any]:
    return {
        "subject": one.subject,
        "version": one.version,
        "id": one.schema,
        "schema": catalogue.schema_text(one.schema),
    }


_ENTRIES = (
    _Entry("GET", "/subjects", _subjects),
    _Entry("GET", "/subjects/{subject}/versions", _subject_versions),
    _Entry("GET", "/subjects/{subject}/versions/{version}", _subject_version),
    _Entry("GET", "/subjects/{subject}/versions/{version}/schema", _subject_schema),
    _Entry("POST", "/subjects/{subject}", _look_up),
    _Entry("GET", "/schemas/types", _types),
    _Entry("GET", "/schemas/ids/{id}", _schema),
    _Entry("GET", "/schemas/ids/{id}/schema", _schema_alone),
    _Entry("GET", "/schemas/ids/{id}/versions", _schema_versions),
    _Entry("GET", "/schemas/ids/{id}/subjects", _schema_subjects),
    _Entry("GET", "/config", _level),
    _Entry("GET", "/config/{subject}", _subject_level),
    _Entry("GET", "/mode", _mode),
    _Entry("GET", "/mode/{subject}", _mode),
)
