"""Schema registry: serve the read side of Confluent's API, with its paths, bodies and error codes, from the catalogue.

Standard clients read the public topics with it where the installation has no registry. Schemas are no secrets, so it
requires no key, like the OpenAPI document. Nothing can be registered here: a new schema is a file in the code.
Source: Confluent Schema Registry, Schema Registry API reference.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from gateway import metrics
from gateway.http.requests import HEADERS
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

LATEST = ("latest", "-1")
SCHEMA_INVALID, VERSION_INVALID = 42201, 42202
ROOTS = ("subjects", "schemas", "config", "mode", "compatibility", "contexts", "exporters")
"""First parts of a registry's paths: under them every answer has its form, a 404 too."""

Handler = Callable[["RegistryCatalogue", web.Request], Awaitable[Any]]


class RegistryError(Exception):
    """A request that is answered with an error of the registry's form."""

    def __init__(self, status: HTTPStatus, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class RegistryCatalogue:
    """The schemas of one installation, in the terms of a registry."""

    def __init__(self, versions: tuple[Version, ...]) -> None:
        self._versions = versions

    def subjects(self) -> list[str]:
        """Return all subjects, each once."""
        return list(dict.fromkeys(version.subject for version in self._versions))

    def of_subject(self, subject: str) -> list[Version]:
        """Return a subject's versions, oldest first. Raises: RegistryError."""
        versions = [version for version in self._versions if version.subject == subject]
        if not versions:
            raise RegistryError(HTTPStatus.NOT_FOUND, SUBJECT_NOT_FOUND, f"Subject '{subject}' not found.")
        return versions

    def of_version(self, subject: str, number: str) -> Version:
        """Return a version by its number, or the latest. Raises: RegistryError."""
        versions = self.of_subject(subject)
        if number in LATEST:
            return versions[-1]
        if not re.fullmatch(r"[1-9][0-9]{0,8}", number, re.ASCII):
            message = (
                f"The specified version '{number}' is not a valid version id. Allowed values are between"
                ' [1, 2^31-1] and the string "latest"'
            )
            raise RegistryError(HTTPStatus.UNPROCESSABLE_ENTITY, VERSION_INVALID, message)
        for version in versions:
            if version.version == int(number):
                return version
        raise RegistryError(HTTPStatus.NOT_FOUND, VERSION_NOT_FOUND, f"Version {number} not found.")

    def of_id(self, text: str) -> list[Version]:
        """Return all versions with this id, which is a number of the catalogue. Raises: RegistryError."""
        versions = [version for version in self._versions if str(version.schema) == text]
        if not versions:
            raise RegistryError(HTTPStatus.NOT_FOUND, SCHEMA_NOT_FOUND, f"Schema {text} not found")
        return versions

    def of_schema(self, subject: str, schema: Any) -> Version:
        """Return the version of a subject that equals this schema in normal form. Raises: RegistryError, Quarantine."""
        versions = self.of_subject(subject)
        normalized = catalogue.normalized(schema)
        for version in versions:
            if catalogue.normalized(catalogue.full_schema(version.schema)) == normalized:
                return version
        raise RegistryError(HTTPStatus.NOT_FOUND, SCHEMA_NOT_FOUND, "Schema not found")


def routes(settings: Settings) -> list[web.RouteDef]:
    """Return the registry's routes; none where the installation has its own registry, whose ids differ."""
    if settings.schema_registry_url:
        return []
    schemas = RegistryCatalogue(subjects.versions(settings.topic_prefix))
    known = [web.route(method, path, _responder(schemas, handler)) for method, path, handler in _ROUTES]
    unknown = _responder(schemas, _refuse_unknown)
    return [*known, *(web.route("*", f"/{root}{{rest:(/.*)?}}", unknown) for root in ROOTS)]


def _responder(schemas: RegistryCatalogue, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def respond(request: web.Request) -> web.StreamResponse:
        status, headers = HTTPStatus.OK, HEADERS
        try:
            document = await handler(schemas, request)
        except RegistryError as error:
            status, document = error.status, {"error_code": error.code, "message": error.message}
            if status is HTTPStatus.METHOD_NOT_ALLOWED:
                headers = {**HEADERS, "Allow": "GET, POST"}
        metrics.REQUESTS.labels("registry", str(status.value)).inc()
        body = document.encode() if isinstance(document, str) else msgspec.json.encode(document)
        return web.Response(body=body, status=status.value, content_type=CONTENT_TYPE, headers=headers)

    return respond


async def _subjects(schemas: RegistryCatalogue, _: web.Request) -> list[str]:
    return schemas.subjects()


async def _subject_versions(schemas: RegistryCatalogue, request: web.Request) -> list[int]:
    return [version.version for version in schemas.of_subject(request.match_info["subject"])]


async def _subject_version(schemas: RegistryCatalogue, request: web.Request) -> Mapping[str, Any]:
    return _document(schemas.of_version(request.match_info["subject"], request.match_info["version"]))


async def _subject_schema(schemas: RegistryCatalogue, request: web.Request) -> str:
    version = schemas.of_version(request.match_info["subject"], request.match_info["version"])
    return catalogue.schema_text(version.schema)


async def _look_up(schemas: RegistryCatalogue, request: web.Request) -> Mapping[str, Any]:
    subject = request.match_info["subject"]
    try:
        return _document(schemas.of_schema(subject, json.loads(json.loads(await request.read())["schema"])))
    except (Quarantine, ValueError, KeyError, TypeError, RecursionError) as error:
        message = "The body holds no Avro schema"
        raise RegistryError(HTTPStatus.UNPROCESSABLE_ENTITY, SCHEMA_INVALID, message) from error


async def _schema(schemas: RegistryCatalogue, request: web.Request) -> Mapping[str, Any]:
    return {"schema": await _schema_text(schemas, request)}


async def _schema_text(schemas: RegistryCatalogue, request: web.Request) -> str:
    return catalogue.schema_text(schemas.of_id(request.match_info["id"])[0].schema)


async def _schema_versions(schemas: RegistryCatalogue, request: web.Request) -> list[Mapping[str, Any]]:
    versions = schemas.of_id(request.match_info["id"])
    return [{"subject": version.subject, "version": version.version} for version in versions]


async def _schema_subjects(schemas: RegistryCatalogue, request: web.Request) -> list[str]:
    return [version.subject for version in schemas.of_id(request.match_info["id"])]


async def _types(_: RegistryCatalogue, __: web.Request) -> list[str]:
    return ["AVRO"]


async def _level(_: RegistryCatalogue, __: web.Request) -> Mapping[str, str]:
    return {"compatibilityLevel": COMPATIBILITY}


async def _subject_level(schemas: RegistryCatalogue, request: web.Request) -> Mapping[str, str]:
    subject = request.match_info["subject"]
    if subject not in schemas.subjects() and request.query.get("defaultToGlobal") != "true":
        message = f"Subject '{subject}' does not have subject-level compatibility configured"
        raise RegistryError(HTTPStatus.NOT_FOUND, LEVEL_NOT_FOUND, message)
    return {"compatibilityLevel": COMPATIBILITY}


async def _mode(_: RegistryCatalogue, __: web.Request) -> Mapping[str, str]:
    return {"mode": "READONLY"}


async def _refuse_unknown(_: RegistryCatalogue, request: web.Request) -> Any:
    if request.method in ("GET", "HEAD"):
        raise RegistryError(HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND, "HTTP 404 Not Found")
    message = "HTTP 405 Method Not Allowed: schemas are part of the code and cannot be changed here"
    raise RegistryError(HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.METHOD_NOT_ALLOWED, message)


def _document(version: Version) -> Mapping[str, Any]:
    text = catalogue.schema_text(version.schema)
    return {"subject": version.subject, "version": version.version, "id": version.schema, "schema": text}


_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/subjects", _subjects),
    ("GET", "/subjects/{subject}/versions", _subject_versions),
    ("GET", "/subjects/{subject}/versions/{version}", _subject_version),
    ("GET", "/subjects/{subject}/versions/{version}/schema", _subject_schema),
    ("POST", "/subjects/{subject}", _look_up),
    ("GET", "/schemas/types", _types),
    ("GET", "/schemas/ids/{id}", _schema),
    ("GET", "/schemas/ids/{id}/schema", _schema_text),
    ("GET", "/schemas/ids/{id}/versions", _schema_versions),
    ("GET", "/schemas/ids/{id}/subjects", _schema_subjects),
    ("GET", "/config", _level),
    ("GET", "/config/{subject}", _subject_level),
    ("GET", "/mode", _mode),
    ("GET", "/mode/{subject}", _mode),
)
