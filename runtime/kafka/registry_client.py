"""A schema registry with Confluent's API, as a client sees it. Shell.

Source: Confluent Schema Registry, Schema Registry API reference; Karapace, Apicurio (ccompat v7) and Redpanda serve
the same paths, bodies and error codes.
"""

from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import aiohttp
import msgspec

from runtime.settings import Settings
from schemas.errors import Halt, Retry

ANSWER_S = 10.0
"""Registration writes to Kafka and waits for its own record: some 10 ms, seconds while a leader changes."""
BODY_BYTES_MAX = 4 * 1024 * 1024
"""Longest answer that is read: the largest of ours is a schema of 8 kB."""
CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
NOT_FOUND, TOO_MANY = 404, 429
_REFUSED = (401, 403)
_SERVER_ERROR = 500
SUBJECT_NOT_FOUND, VERSION_NOT_FOUND, SCHEMA_NOT_FOUND, LEVEL_NOT_FOUND = 40401, 40402, 40403, 40408
_MISSING = (SUBJECT_NOT_FOUND, VERSION_NOT_FOUND, SCHEMA_NOT_FOUND, LEVEL_NOT_FOUND)
"""Error codes that say no more than that something is not there; a level is a subject's own."""


class Registered(NamedTuple):
    """A schema as a registry has it. `text`: the schema itself."""

    subject: str
    version: int
    id: int
    text: str


class Registry:
    """One registry, in an `async with`.

    Every call raises Retry, where it is away, late or overloaded; Halt, where it refuses user or schema, or is none.
    """

    def __init__(self, settings: Settings, *, answer_s: float = ANSWER_S) -> None:
        if not settings.schema_registry_url:
            raise Halt("no schema registry: set TARTAN_SCHEMA_REGISTRY_URL")
        self._address = settings.schema_registry_url
        self._headers = {"Accept": f"{CONTENT_TYPE}, application/json"}
        if settings.schema_registry_username is not None:
            password = settings.schema_registry_password
            secret = "" if password is None else password.get_secret_value()
            authorization = aiohttp.encode_basic_auth(settings.schema_registry_username, secret, encoding="utf-8")
            self._headers["Authorization"] = authorization
        self._timeout = aiohttp.ClientTimeout(total=answer_s)
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connections."""
        self._http = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        assert self._http is not None
        await self._http.close()

    async def find(self, subject: str, text: str) -> Registered | None:
        """This schema under this subject; None where it is not there."""
        found = await self._ask("POST", f"/subjects/{quote(subject, safe='')}", {"schema": text})
        return None if found is None else _registered(found)

    async def register(self, subject: str, text: str) -> int:
        """Register a schema and give its id.

        Idempotence: one that is there keeps its version and id.
        Raises: Halt, with the registry's reason, where it is incompatible with a version before it.
        """
        found = await self._ask("POST", f"/subjects/{quote(subject, safe='')}/versions", {"schema": text})
        if not isinstance(found, dict) or type(found.get("id")) is not int:
            raise Halt(f"the schema registry {self._address} registered {subject} and gave no id")
        return int(found["id"])

    async def versions(self, subject: str) -> list[Registered]:
        """All versions of a subject, oldest first; none where it does not exist."""
        path = f"/subjects/{quote(subject, safe='')}/versions"
        numbers = await self._ask("GET", path)
        found = [await self._ask("GET", f"{path}/{int(number)}") for number in numbers or []]
        return [_registered(one) for one in found if one is not None]

    async def compatibility(self, subject: str) -> str | None:
        """The subject's own level; None where it has none and the registry's counts."""
        found = await self._ask("GET", f"/config/{quote(subject, safe='')}")
        return None if found is None else str(found.get("compatibilityLevel"))

    async def set_compatibility(self, subject: str, level: str) -> None:
        """Give a subject a level of its own, whether it exists already or not."""
        if await self._ask("PUT", f"/config/{quote(subject, safe='')}", {"compatibility": level}) is None:
            raise Halt(f"the schema registry {self._address} keeps no compatibility level of {subject}")

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        """An answer's JSON; None where what is asked for is not there."""
        assert self._http is not None, "a registry is asked within its async with"
        sent = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": CONTENT_TYPE} if sent is not None else {}
        try:
            async with self._http.request(method, self._address + path, data=sent, headers=headers) as answer:
                status, text = answer.status, await answer.content.read(BODY_BYTES_MAX)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Retry(f"the schema registry {self._address} does not answer: {type(error).__name__}") from error
        return self._understood(f"{method} {path}", status, text)

    def _understood(self, asked: str, status: int, text: bytes) -> Any:
        try:
            said = msgspec.json.decode(text)
        except msgspec.DecodeError:
            said = None
        code, message = _error(said)
        if status in _REFUSED:
            raise Halt(f"the schema registry {self._address} refuses the user of TARTAN_SCHEMA_REGISTRY_USERNAME")
        if status >= _SERVER_ERROR or status == TOO_MANY:
            raise Retry(f"the schema registry {self._address} answered {status} {message}".rstrip())
        if status == NOT_FOUND and code in _MISSING:
            return None
        if status >= 300 or said is None:
            raise Halt(f"the schema registry {self._address} answered {asked} with {status} {message}".rstrip())
        return said


def _error(said: Any) -> tuple[int | None, str]:
    if not isinstance(said, dict):
        return None, ""
    return said.get("error_code"), str(said.get("message", ""))


def _registered(said: Any) -> Registered:
    try:
        return Registered(str(said["subject"]), int(said["version"]), int(said["id"]), str(said["schema"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Halt("the schema registry's answer names no subject, version, id and schema") from error
