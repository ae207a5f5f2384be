"""Verify that a webhook is Plaid's, by signature, body and time, without a clock and without a network.

Source: Plaid documentation, Webhook verification; PLAID.md 1.6.
"""

import hashlib
import hmac
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from ingest.refusals import Reason, WebhookRefused
from ingest.tokens import Token, decode_base64url, parse, parse_object
from schemas.log.records import Webhook
from schemas.times import SECOND_US

AGE_S_MAX = 300
"""Plaid's rule: a token is refused five minutes after it was issued."""
AHEAD_S_MAX = 30
"""Longest time that a token may lie in our future as a clock error: clocks in step differ by milliseconds, a machine
without NTP by seconds."""
COORDINATE_BYTES = 32
JWK_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One of Plaid's public keys, and the JWK from which it was read, byte for byte."""

    key_id: str
    public: ec.EllipticCurvePublicKey
    jwk_json: str


def read_key(jwk: bytes, *, key_id: str) -> VerificationKey:
    """Read the JWK that Plaid gave for this key id.

    Raises: WebhookRefused, where Plaid has ended the key (`expired_at`), or it is no P-256 signing key of this id.
    """
    value = parse_object(jwk) if len(jwk) <= JWK_BYTES_MAX else None
    if value is None:
        raise WebhookRefused(Reason.KEY_UNUSABLE)
    if value.get("expired_at") is not None:
        raise WebhookRefused(Reason.KEY_EXPIRED)
    expected = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": key_id}
    if any(value.get(name) != content for name, content in expected.items()):
        raise WebhookRefused(Reason.KEY_UNUSABLE)
    numbers = ec.EllipticCurvePublicNumbers(_coordinate(value.get("x")), _coordinate(value.get("y")), ec.SECP256R1())
    try:
        public = numbers.public_key()
    except ValueError as error:  # the point is not on the curve
        raise WebhookRefused(Reason.KEY_UNUSABLE) from error
    return VerificationKey(key_id, public, jwk.decode("utf-8"))


def check_body(token: Token, body: bytes) -> None:
    """Compare the SHA-256 of the raw bytes with the token's, in constant time.

    Raises: WebhookRefused. Parsed and written again the same JSON has other bytes, and is refused.
    """
    if not hmac.compare_digest(hashlib.sha256(body).digest(), token.body_sha256):
        raise WebhookRefused(Reason.BODY_DIFFERS)


def check_signature(token: Token, key: VerificationKey) -> None:
    """Check the signature over the token's first two parts as they were sent.

    Raises: WebhookRefused.
    """
    if token.key_id != key.key_id:
        raise WebhookRefused(Reason.KEY_UNUSABLE)
    half = len(token.signature) // 2
    r, s = int.from_bytes(token.signature[:half], "big"), int.from_bytes(token.signature[half:], "big")
    try:
        key.public.verify(encode_dss_signature(r, s), token.signed, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise WebhookRefused(Reason.SIGNATURE_WRONG) from error


def is_stale(token: Token, *, now_s: float) -> bool:
    """Return whether a token is too old. Call it after the signature check: before it anybody can set the time.

    Raises: WebhookRefused, where the token lies in the future.
    """
    if token.issued_at - now_s > AHEAD_S_MAX:
        raise WebhookRefused(Reason.FUTURE)
    return now_s - token.issued_at > AGE_S_MAX


def verify_record(record: Webhook) -> Token:
    """Verify a webhook from the log, years later and without Plaid, by its token and the key stored with it.

    A body that carried tokens is not stored: its hash is verified in its place.
    Raises: WebhookRefused, where hash, key, signature or time do not fit.
    """
    token = parse(record.jwt)
    if not hmac.compare_digest(record.body_sha256, token.body_sha256):
        raise WebhookRefused(Reason.BODY_DIFFERS)
    if record.body is not None:
        check_body(token, record.body)
    check_signature(token, _stored_key(record.jwk_json, token.key_id))
    if is_stale(token, now_s=record.received_at / SECOND_US) != record.stale:
        raise WebhookRefused(Reason.STALE)
    return token


@lru_cache(maxsize=100)
def _stored_key(jwk_json: str, key_id: str) -> VerificationKey:
    return read_key(jwk_json.encode(), key_id=key_id)


def _coordinate(text: object) -> int:
    value = decode_base64url(text) if isinstance(text, str) else None
    if value is None or len(value) != COORDINATE_BYTES:
        raise WebhookRefused(Reason.KEY_UNUSABLE)
    return int.from_bytes(value, "big")
