"""A schema registry as Confluent documents it: subjects, versions, ids, levels, errors; in memory, for tests.

No real one runs without Docker or a JVM of its own here. It can be away, slow, ask for a user, and number as it likes.
Source: Confluent Schema Registry, Schema Registry API reference.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from schemas.encoding import compatibility

Answer = tuple[int, Any]
_NO_SCHEMA: Answer = (404, {"error_code": 40403, "message": "Schema not found"})


@dataclass
class ConfluentRegistry:
    """What it holds. `ids`: the text of a schema to its id; the same text has one id in all subjects."""

    url: str = ""
    first_id: int = 1001
    ids: dict[str, int] = field(default_factory=dict)
    subjects: dict[str, list[str]] = field(default_factory=dict)
    levels: dict[str, str] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    authorization: str | None = None
    fails_with: int | None = None
    is_silent: bool = False

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        if self.is_silent:
            await asyncio.sleep(60)
        status, told = self._answer(request, await request.text())
        return web.json_response(told, status=status, content_type="application/vnd.schemaregistry.v1+json")

    def _answer(self, request: web.Request, body: str) -> Answer:
        if self.fails_with is not None:
            return self.fails_with, {
                "error_code": 50003,
                "message": "Error while forwarding the request to the primary",
            }
        if self.authorization not in (None, request.headers.get("Authorization")):
            return 401, {"error_code": 401, "message": "HTTP 401 Unauthorized"}
        method, parts = request.method, request.path.strip("/").split("/")
        sent = json.loads(body) if body else {}
        match (method, *parts):
            case ("PUT", "config", subject):
                self.writes.append(request.path)
                self.levels[subject] = sent["compatibility"]
                return 200, sent
            case ("GET", "config", subject) if subject in self.levels:
                return 200, {"compatibilityLevel": self.levels[subject]}
            case ("GET", "config", _):
                return 404, {"error_code": 40408, "message": "no subject-level compatibility configured"}
            case ("POST", "subjects", subject, "versions"):
                return self._register(request, subject, sent["schema"])
            case ("GET", "schemas", "ids", number):
                found = [text for text, known in self.ids.items() if known == int(number)]
                return (
                    (200, {"schema": found[0]})
                    if found
                    else (404, {"error_code": 40403, "message": "Schema not found"})
                )
            case (_, "subjects", subject, *_) if subject not in self.subjects:
                return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
            case ("POST", "subjects", subject):
                return self._version(subject, sent["schema"])
            case ("GET", "subjects", subject, "versions"):
                return 200, list(range(1, len(self.subjects[subject]) + 1))
            case ("GET", "subjects", subject, "versions", version):
                return self._version(subject, self.subjects[subject][int(version) - 1])
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _version(self, subject: str, text: str) -> Answer:
        if text not in self.subjects[subject]:
            return _NO_SCHEMA
        version = self.subjects[subject].index(text) + 1
        return 200, {"subject": subject, "version": version, "id": self.ids[text], "schema": text}

    def _register(self, request: web.Request, subject: str, text: str) -> Answer:
        held = self.subjects.get(subject, [])
        if text not in held:
            named = {**{str(place): one for place, one in enumerate(held)}, "new": text}
            if self.levels.get(subject) == "FULL_TRANSITIVE" and compatibility.incompatible_pairs(named):
                message = f'Schema being registered is incompatible with an earlier schema for subject "{subject}"'
                return 409, {"error_code": 409, "message": message}
            self.writes.append(request.path)
            self.subjects[subject] = [*held, text]
            self.ids.setdefault(text, self.first_id + len(self.ids))
        return 200, {"id": self.ids[text]}


@asynccontextmanager
async def running(registry: ConfluentRegistry | None = None) -> AsyncIterator[ConfluentRegistry]:
    """Serve it."""
    registry = registry or ConfluentRegistry()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", registry.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        registry.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield registry
    finally:
        await runner.cleanup()
