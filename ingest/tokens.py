"""Parse the JWT in the header `Plaid-Verification` strictly: a token of any other form is refused."""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from ingest.refusals import Reason, WebhookRefused

TOKEN_CHARS_MAX = 4096
"""Plaid's tokens have about 330 characters; a server's line limit of 8 KiB would let each be parsed for nothing."""
SIGNATURE_BYTES = 64
"""r and s of P-256, 32 bytes each. Source: RFC 7518, 3.4."""
ISSUED_AT_MAX = 2**40
"""About the year 36,800. Without a bound an `iat` of 4,000 digits would be compared digit by digit."""
FORBIDDEN_IN_HEADER = frozenset({"jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "zip", "enc"})
"""Members that bring a key along or change how a token is read. Plaid sends `alg`, `kid` and `typ` only."""

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """A well-formed token, not yet verified.

    Units: `issued_at` in seconds since 1970, UTC. `signed` are the bytes that `signature` (r, s) must be over.
    """

    text: str
    key_id: str
    issued_at: int
    body_sha256: bytes
    signed: bytes
    signature: bytes


def parse(text: str) -> Token:
    """Parse a token in compact form.

    Raises: WebhookRefused, with the first error.
    Source: RFC 7515, 3.1; RFC 8725, 3; Plaid documentation, Webhook verification.
    """
    if not text:
        raise WebhookRefused(Reason.TOKEN_MISSING)
    if len(text) > TOKEN_CHARS_MAX:
        raise WebhookRefused(Reason.TOKEN_TOO_LONG)
    parts = text.split(".")
    decoded = [decode_base64url(part) for part in parts]
    if len(parts) != 3 or decoded[0] is None or decoded[1] is None or decoded[2] is None:
        raise WebhookRefused(Reason.TOKEN_MALFORMED)
    key_id = _key_id(parse_object(decoded[0]))
    issued_at, body_sha256 = _claims(parse_object(decoded[1]))
    if len(decoded[2]) != SIGNATURE_BYTES:
        raise WebhookRefused(Reason.SIGNATURE_MALFORMED)
    return Token(text, key_id, issued_at, body_sha256, f"{parts[0]}.{parts[1]}".encode("ascii"), decoded[2])


def decode_base64url(part: str) -> bytes | None:
    """Decode base64url in its one canonical form: no padding, no other character, no set bit without a meaning."""
    if not _BASE64URL.fullmatch(part) or len(part) % 4 == 1:
        return None
    try:
        value = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        return None
    return value if base64.urlsafe_b64encode(value).rstrip(b"=") == part.encode("ascii") else None


def parse_object(text: bytes) -> dict[str, Any] | None:
    """Parse a JSON object without repeated names or NaN: two readers must never see two meanings in one text."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_names, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _key_id(header: dict[str, Any] | None) -> str:
    if header is None:
        raise WebhookRefused(Reason.HEADER_MALFORMED)
    if header.get("alg") != "ES256":
        raise WebhookRefused(Reason.ALGORITHM)
    if FORBIDDEN_IN_HEADER & header.keys():
        raise WebhookRefused(Reason.HEADER_FORBIDDEN)
    if header.get("typ", "JWT") != "JWT":
        raise WebhookRefused(Reason.TYPE)
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise WebhookRefused(Reason.KEY_ID)
    return key_id


def _claims(claims: dict[str, Any] | None) -> tuple[int, bytes]:
    issued_at, digest = (claims.get("iat"), claims.get("request_body_sha256")) if claims else (None, None)
    # True is an int to isinstance, and 1.7e9 is a time to everything but a strict reader.
    if type(issued_at) is not int or not 0 <= issued_at <= ISSUED_AT_MAX:
        raise WebhookRefused(Reason.CLAIMS_MALFORMED)
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise WebhookRefused(Reason.CLAIMS_MALFORMED)
    return issued_at, bytes.fromhex(digest)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is repeated")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
