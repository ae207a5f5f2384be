"""Client of a schema registry with Confluent's API.

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
"""Longest answer that is read: the largest schema has 8 kB."""
CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
NOT_FOUND, TOO_MANY = 404, 429
_REFUSED = (401, 403)
_SERVER_ERROR = 500
SUBJECT_NOT_FOUND, VERSION_NOT_FOUND, SCHEMA_NOT_FOUND, LEVEL_NOT_FOUND = 40401, 40402, 40403, 40408
_MISSING = (SUBJECT_NOT_FOUND, VERSION_NOT_FOUND, SCHEMA_NOT_FOUND, LEVEL_NOT_FOUND)
"""Error codes of missing things; a missing level is a subject's own."""


class Registered(NamedTuple):
    """A registered schema. `text`: the schema itself."""

    subject: str
    version: int
    id: int
    text: str


class Registry:
    """One registry, used in an `async with`.

    Each call raises Retry, where it is away, late or overloaded; Halt, where it refuses user or schema, or is none.
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
        """Close the connections."""
        assert self._http is not None
        await self._http.close()

    async def find(self, subject: str, text: str) -> Registered | None:
        """Return the registered schema of a subject; None where it is missing."""
        answer = await self._ask("POST", f"/subjects/{quote(subject, safe='')}", {"schema": text})
        return None if answer is None else _registered(answer)

    async def register(self, subject: str, text: str) -> int:
        """Register a schema and return its id.

        Idempotence: a present one keeps its version and id.
        Raises: Halt, with the registry's reason, where it is incompatible with a version before it.
        """
        answer = await self._ask("POST", f"/subjects/{quote(subject, safe='')}/versions", {"schema": text})
        if not isinstance(answer, dict) or type(answer.get("id")) is not int:
            raise Halt(f"the schema registry {self._address} registered {subject} and gave no id")
        return int(answer["id"])

    async def versions(self, subject: str) -> list[Registered]:
        """Return all versions of a subject, oldest first; none where it does not exist."""
        path = f"/subjects/{quote(subject, safe='')}/versions"
        numbers = await self._ask("GET", path)
        answers = [await self._ask("GET", f"{path}/{int(number)}") for number in numbers or []]
        return [_registered(answer) for answer in answers if answer is not None]

    async def compatibility(self, subject: str) -> str | None:
        """Return the subject's own level; None where it has none and the registry's applies."""
        answer = await self._ask("GET", f"/config/{quote(subject, safe='')}")
        return None if answer is None else str(answer.get("compatibilityLevel"))

    async def set_compatibility(self, subject: str, level: str) -> None:
        """Set a subject's own level, also before it exists."""
        if await self._ask("PUT", f"/config/{quote(subject, safe='')}", {"compatibility": level}) is None:
            raise Halt(f"the schema registry {self._address} keeps no compatibility level of {subject}")

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        """Return an answer's JSON; None where the requested thing is missing."""
        assert self._http is not None, "a registry is asked within its async with"
        sent = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": CONTENT_TYPE} if sent is not None else {}
        try:
            async with self._http.request(method, self._address + path, data=sent, headers=headers) as answer:
                status, text = answer.status, await answer.content.read(BODY_BYTES_MAX)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Retry(f"the schema registry {self._address} does not answer: {type(error).__name__}") from error
        try:
            decoded = msgspec.json.decode(text)
        except msgspec.DecodeError:
            decoded = None
        fields = decoded if isinstance(decoded, dict) else {}
        code, message = fields.get("error_code"), str(fields.get("message", ""))
        if status in _REFUSED:
            raise Halt(f"the schema registry {self._address} refuses the user of TARTAN_SCHEMA_REGISTRY_USERNAME")
        if status >= _SERVER_ERROR or status == TOO_MANY:
            raise Retry(f"the schema registry {self._address} answered {status} {message}".rstrip())
        if status == NOT_FOUND and code in _MISSING:
            return None
        if status >= 300 or decoded is None:
            raise Halt(f"the schema registry {self._address} answered {method} {path} with {status} {message}".rstrip())
        return decoded


def _registered(answer: Any) -> Registered:
    try:
        return Registered(str(answer["subject"]), int(answer["version"]), int(answer["id"]), str(answer["schema"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Halt("the schema registry's answer names no subject, version, id and schema") from error
