"""Who is asking: API keys for applications, short-lived signed tokens for their users' browsers."""

import hashlib
import hmac
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from gateway.http.problems import Problem
from runtime.settings import Settings
from schemas.errors import Halt

STREAM_TOKEN_S = 300
"""A browser opens its stream at once; a token that leaks into a log or a history is worth five minutes."""

SECRET_CHARS_MIN = 32
"""HS256 wants a key as long as its hash, 256 bits. Source: RFC 7518, 3.2."""

TOKEN_CHARS_MAX = 1024
AUDIENCE = "tartan.stream"
ALGORITHM = "HS256"
CRON = "\0cron"
"""Who asks with the cron's secret: no tenant's name, since those are printable text."""


SESSION_S_MAX = 12 * 3600
"""An open stream may renew its token for so long; then the application, which knows its user, is asked again."""


class Viewer(NamedTuple):
    """Whose stream a token opens. `since` is when the application gave the first token, in seconds since 1970."""

    tenant: str
    user: int
    since: int


class Tenants:
    """API keys, each of a tenant."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        if not keys:
            raise Halt("no API keys: set TARTAN_API_KEYS (tenant:key, entries separated by commas)")
        self._digests = [(hashlib.sha256(key.encode()).digest(), tenant) for key, tenant in keys.items()]

    def of(self, authorization: str | None) -> str:
        """The tenant of an `Authorization` header.

        Raises: Problem 401. All keys are compared, each in constant time, so the answer's time tells nothing.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        matching = [tenant for digest, tenant in self._digests if hmac.compare_digest(digest, given)]
        if scheme.lower() != "bearer" or not matching:
            kind = "api_key_wrong" if authorization else "api_key_missing"
            raise _unauthorized(kind, "send `Authorization: Bearer KEY` with a key of TARTAN_API_KEYS")
        return matching[0]


class CronSecret:
    """The secret of an outside cron."""

    def __init__(self, settings: Settings) -> None:
        secret = settings.cron_secret.get_secret_value()
        self._digest = hashlib.sha256(secret.encode()).digest() if secret else None

    def check(self, authorization: str | None) -> str:
        """Let an `Authorization` header pass, and give the name of who asks.

        Raises: Problem 404, where no secret is set, so that there is nothing here; Problem 401.
        """
        if self._digest is None:
            raise Problem(HTTPStatus.NOT_FOUND, "schedule_off", "set TARTAN_CRON_SECRET to turn this endpoint on")
        scheme, _, secret = (authorization or "").partition(" ")
        given = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
        is_right = hmac.compare_digest(self._digest, given)
        if scheme.lower() != "bearer" or not is_right:
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
        """A token for a user's stream, and when it ends, in seconds since 1970."""
        return self._signed(Viewer(tenant, user, int(time.time())))

    def renewed(self, viewer: Viewer) -> tuple[str, int] | None:
        """A new token for an open stream, so that it can connect again; None where it is open for too long."""
        return self._signed(viewer) if time.time() - viewer.since < SESSION_S_MAX else None

    def read(self, token: str) -> Viewer | None:
        """Whose token this is; None where it is no token of ours, or over."""
        if len(token) > TOKEN_CHARS_MAX:
            return None
        try:
            claims = jwt.decode(token, self._key, algorithms=[ALGORITHM]).claims
            _RULES.validate(claims)
            return Viewer(str(claims["tenant"]), int(claims["user"]), int(claims["since"]))
        except (JoseError, ValueError, TypeError):
            return None

    def _signed(self, viewer: Viewer) -> tuple[str, int]:
        ends_at = int(time.time()) + STREAM_TOKEN_S
        # The user as text: a number of 63 bits loses digits in every reader that keeps numbers as doubles.
        claims = {**viewer._asdict(), "user": str(viewer.user), "aud": AUDIENCE, "exp": ends_at}
        return jwt.encode({"alg": ALGORITHM}, claims, self._key, algorithms=[ALGORITHM]), ends_at


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
