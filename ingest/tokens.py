"""Strict reading of the JWT in the header `Plaid-Verification`: what does not look exactly right is refused."""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from ingest.reasons import Reason, Refused

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
    """A token that is well formed; nothing of it is proved yet.

    Units: `issued_at` in seconds since 1970, UTC. `signed` are the bytes that `signature` (r, s) must be over.
    """

    text: str
    key_id: str
    issued_at: int
    body_sha256: bytes
    signed: bytes
    signature: bytes


def parse(text: str) -> Token:
    """Read a token in compact form.

    Raises: Refused, with the first thing that is wrong.
    Source: RFC 7515, 3.1; RFC 8725, 3; Plaid documentation, Webhook verification.
    """
    if not text:
        raise Refused(Reason.TOKEN_MISSING)
    if len(text) > TOKEN_CHARS_MAX:
        raise Refused(Reason.TOKEN_TOO_LONG)
    parts = text.split(".")
    if len(parts) != 3:
        raise Refused(Reason.TOKEN_MALFORMED)
    header, payload, signature = (_bytes(part) for part in parts)
    key_id = _key_id(_object(header, Reason.HEADER_MALFORMED))
    issued_at, digest = _claims(_object(payload, Reason.CLAIMS_MALFORMED))
    if len(signature) != SIGNATURE_BYTES:
        raise Refused(Reason.SIGNATURE_MALFORMED)
    return Token(text, key_id, issued_at, digest, f"{parts[0]}.{parts[1]}".encode("ascii"), signature)


def decoded(part: str) -> bytes | None:
    """Read base64url in its one canonical form: no padding, no other character, no set bit that means nothing."""
    if not _BASE64URL.fullmatch(part) or len(part) % 4 == 1:
        return None
    try:
        value = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        return None
    return value if base64.urlsafe_b64encode(value).rstrip(b"=") == part.encode("ascii") else None


def strict_object(text: bytes) -> dict[str, Any] | None:
    """Read a JSON object without repeated names or NaN: two readers must never see two meanings in one text."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _key_id(header: dict[str, Any]) -> str:
    if header.get("alg") != "ES256":
        raise Refused(Reason.ALGORITHM)
    if FORBIDDEN_IN_HEADER & header.keys():
        raise Refused(Reason.HEADER_FORBIDDEN)
    if header.get("typ", "JWT") != "JWT":
        raise Refused(Reason.TYPE)
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise Refused(Reason.KEY_ID)
    return key_id


def _claims(claims: dict[str, Any]) -> tuple[int, bytes]:
    issued_at, digest = claims.get("iat"), claims.get("request_body_sha256")
    # True is an int to isinstance, and 1.7e9 is a time to everything but a strict reader.
    if type(issued_at) is not int or not 0 <= issued_at <= ISSUED_AT_MAX:
        raise Refused(Reason.CLAIMS_MALFORMED)
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise Refused(Reason.CLAIMS_MALFORMED)
    return issued_at, bytes.fromhex(digest)


def _bytes(part: str) -> bytes:
    value = decoded(part)
    if value is None:
        raise Refused(Reason.TOKEN_MALFORMED)
    return value


def _object(text: bytes, reason: Reason) -> dict[str, Any]:
    value = strict_object(text)
    if value is None:
        raise Refused(reason)
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is repeated")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
