"""Is this webhook Plaid's? Signature, body and time, decided without a clock and without a network.

Source: Plaid documentation, Webhook verification; PLAID.md 1.6.
"""

import hashlib
import hmac
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from ingest.reasons import Reason, Refused
from ingest.tokens import Token, decoded, parse, strict_object
from schemas.log.records import Webhook
from schemas.times import SECOND_US

AGE_S_MAX = 300
"""Plaid's rule: a token is refused five minutes after it was issued."""

AHEAD_S_MAX = 30
"""How far a token may lie in our future before it is no clock's error any more: clocks in step differ by
milliseconds, a machine without NTP by seconds."""

COORDINATE_BYTES = 32
JWK_BYTES_MAX = 4096


class Freshness(Enum):
    """What the time of a genuine token says."""

    FRESH = "fresh"
    STALE = "stale"
    FUTURE = "future"


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One of Plaid's public keys, and the JWK from which it was read, byte for byte."""

    key_id: str
    public: ec.EllipticCurvePublicKey
    jwk_json: str


def read_key(jwk: bytes, *, key_id: str) -> VerificationKey:
    """Read the JWK that Plaid gave for this key id.

    Raises: Refused, where Plaid has ended the key (`expired_at`), or it is no P-256 signing key of this id.
    """
    value = strict_object(jwk) if len(jwk) <= JWK_BYTES_MAX else None
    if value is None:
        raise Refused(Reason.KEY_UNUSABLE)
    if value.get("expired_at") is not None:
        raise Refused(Reason.KEY_EXPIRED)
    expected = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": key_id}
    if any(value.get(name) != wanted for name, wanted in expected.items()):
        raise Refused(Reason.KEY_UNUSABLE)
    numbers = ec.EllipticCurvePublicNumbers(_coordinate(value.get("x")), _coordinate(value.get("y")), ec.SECP256R1())
    try:
        public = numbers.public_key()
    except ValueError as error:  # the point is not on the curve
        raise Refused(Reason.KEY_UNUSABLE) from error
    return VerificationKey(key_id, public, jwk.decode("utf-8"))


def check_body(token: Token, body: bytes) -> None:
    """Compare the SHA-256 of the raw bytes with the token's, in constant time.

    Raises: Refused. Parsed and written again the same JSON has other bytes, and is refused.
    """
    if not hmac.compare_digest(hashlib.sha256(body).digest(), token.body_sha256):
        raise Refused(Reason.BODY_DIFFERS)


def check_signature(token: Token, key: VerificationKey) -> None:
    """Check the signature over the token's first two parts as they were sent.

    Raises: Refused.
    """
    if token.key_id != key.key_id:
        raise Refused(Reason.KEY_UNUSABLE)
    half = len(token.signature) // 2
    r, s = int.from_bytes(token.signature[:half], "big"), int.from_bytes(token.signature[half:], "big")
    try:
        key.public.verify(encode_dss_signature(r, s), token.signed, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise Refused(Reason.SIGNATURE_WRONG) from error


def freshness(token: Token, *, now_s: float) -> Freshness:
    """Say how a token's time lies to ours. Asked after the signature: before it the time is anybody's word."""
    if token.issued_at - now_s > AHEAD_S_MAX:
        return Freshness.FUTURE
    return Freshness.STALE if now_s - token.issued_at > AGE_S_MAX else Freshness.FRESH


def verify_again(record: Webhook) -> Token:
    """Verify a webhook from the log by itself, years later, without Plaid: its token with the key kept beside it.

    Raises: Refused, where hash, key, signature or time do not fit. A body that was not kept (it carried tokens)
    stands in the log by its hash alone.
    """
    token = parse(record.jwt)
    if not hmac.compare_digest(record.body_sha256, token.body_sha256):
        raise Refused(Reason.BODY_DIFFERS)
    if record.body is not None:
        check_body(token, record.body)
    check_signature(token, _kept_key(record.jwk_json, token.key_id))
    seen = freshness(token, now_s=record.received_at / SECOND_US)
    if seen is Freshness.FUTURE:
        raise Refused(Reason.FUTURE)
    if (seen is Freshness.STALE) != record.stale:
        raise Refused(Reason.STALE)
    return token


@lru_cache(maxsize=100)
def _kept_key(jwk_json: str, key_id: str) -> VerificationKey:
    """The key beside a webhook: thousands of them have the same."""
    return read_key(jwk_json.encode(), key_id=key_id)


def _coordinate(text: object) -> int:
    value = decoded(text) if isinstance(text, str) else None
    if value is None or len(value) != COORDINATE_BYTES:
        raise Refused(Reason.KEY_UNUSABLE)
    return int.from_bytes(value, "big")
