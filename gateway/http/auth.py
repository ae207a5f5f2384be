"""Authentication: API keys of applications, the cron's secret, and short-lived signed tokens for browsers."""

import hashlib
import hmac
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

import asyncpg
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from gateway.http.problems import Problem
from runtime.settings import Settings
from schemas.errors import Halt

STREAM_TOKEN_S = 300
"""A browser opens its stream at once; a token that leaks into a log or a history is valid for five minutes."""
SESSION_S_MAX = 12 * 3600
"""An open stream may renew its token for so long; then the application has to issue a new one."""
SECRET_CHARS_MIN = 32
"""HS256 needs a key as long as its hash, 256 bits. Source: RFC 7518, 3.2."""
TOKEN_CHARS_MAX = 1024
AUDIENCE = "tartan.stream"
ALGORITHM = "HS256"
CRON = "\0cron"
"""Caller's name for the cron's secret; no tenant has it, since tenants' names are printable text."""


class Viewer(NamedTuple):
    """User of a stream. `issued_at`: when the application requested the first token, in seconds since 1970."""

    tenant: str
    user: int
    issued_at: int


class Tenants:
    """API keys, each of one tenant."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        if not keys:
            raise Halt("no API keys: set TARTAN_API_KEYS (tenant:key, entries separated by commas)")
        self._digests = [(hashlib.sha256(key.encode()).digest(), tenant) for key, tenant in keys.items()]

    def identify(self, authorization: str | None) -> str:
        """Return the tenant of an `Authorization` header.

        All keys are compared, each in constant time, so that the response time reveals nothing.
        Raises: Problem 401.
        """
        given = _bearer_digest(authorization)
        matching = [tenant for digest, tenant in self._digests if hmac.compare_digest(digest, given)]
        if not matching:
            kind = "api_key_wrong" if authorization else "api_key_missing"
            raise _unauthorized(kind, "send `Authorization: Bearer KEY` with a key of TARTAN_API_KEYS")
        return matching[0]


class CronSecret:
    """The secret of an external cron."""

    def __init__(self, settings: Settings) -> None:
        secret = settings.cron_secret.get_secret_value()
        self._digest = hashlib.sha256(secret.encode()).digest() if secret else None

    def identify(self, authorization: str | None) -> str:
        """Check an `Authorization` header and return the caller's name, CRON.

        Raises: Problem 404, where no secret is set, so that the endpoint does not exist; Problem 401.
        """
        if self._digest is None:
            raise Problem(HTTPStatus.NOT_FOUND, "schedule_off", "set TARTAN_CRON_SECRET to turn this endpoint on")
        if not hmac.compare_digest(self._digest, _bearer_digest(authorization)):
            kind = "cron_secret_wrong" if authorization else "cron_secret_missing"
            raise _unauthorized(kind, "send `Authorization: Bearer SECRET` with TARTAN_CRON_SECRET")
        return CRON


class StreamTokens:
    """Issues and reads the tokens with which browsers open streams."""

    def __init__(self, settings: Settings) -> None:
        secret = settings.stream_secret.get_secret_value()
        if len(secret) < SECRET_CHARS_MIN:
            raise Halt(f"TARTAN_STREAM_SECRET has {len(secret)} characters, it needs at least {SECRET_CHARS_MIN}")
        self._key = OctKey.import_key(secret)

    def issue(self, tenant: str, user: int) -> tuple[str, int]:
        """Issue a token for a user's stream; return it with its end, in seconds since 1970."""
        return self._sign(Viewer(tenant, user, int(time.time())))

    def renew(self, viewer: Viewer) -> tuple[str, int] | None:
        """Issue a new token for an open stream; None where its first token is older than SESSION_S_MAX."""
        return self._sign(viewer) if time.time() - viewer.issued_at < SESSION_S_MAX else None

    def read(self, token: str) -> Viewer | None:
        """Return the viewer of a token; None where it is forged or expired."""
        if len(token) > TOKEN_CHARS_MAX:
            return None
        try:
            claims = jwt.decode(token, self._key, algorithms=[ALGORITHM]).claims
            _RULES.validate(claims)
            return Viewer(str(claims["tenant"]), int(claims["user"]), int(claims["since"]))
        except (JoseError, ValueError, TypeError):
            return None

    def _sign(self, viewer: Viewer) -> tuple[str, int]:
        ends_at = int(time.time()) + STREAM_TOKEN_S
        # The user as text: a number of 63 bits loses digits in every reader that keeps numbers as doubles.
        claims = {"tenant": viewer.tenant, "user": str(viewer.user), "since": viewer.issued_at}
        claims |= {"aud": AUDIENCE, "exp": ends_at}
        return jwt.encode({"alg": ALGORITHM}, claims, self._key, algorithms=[ALGORITHM]), ends_at


async def is_user(connection: asyncpg.Connection, viewer: Viewer) -> bool:
    """Return whether the viewer's user still exists: a token is valid some minutes longer than an erased user."""
    query = "SELECT true FROM tartan.users WHERE tenant = $1 AND user_number = $2"
    return bool(await connection.fetchval(query, viewer.tenant, viewer.user))


def _bearer_digest(authorization: str | None) -> bytes:
    """Return the SHA-256 of a bearer credential; of any other header b"", which equals no digest."""
    scheme, _, credential = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        return b""
    return hashlib.sha256(credential.strip().encode("utf-8", "surrogateescape")).digest()


def _unauthorized(kind: str, detail: str) -> Problem:
    return Problem(HTTPStatus.UNAUTHORIZED, kind, detail, headers={"WWW-Authenticate": "Bearer"})


_RULES = jwt.JWTClaimsRegistry(
    leeway=0,
    aud={"essential": True, "value": AUDIENCE},
    exp={"essential": True},
    tenant={"essential": True},
    user={"essential": True},
    since={"essential": True},
)
