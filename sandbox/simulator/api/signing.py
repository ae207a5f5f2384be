"""Sign webhooks as Plaid does: ES256 over `{iat, request_body_sha256}`.

Keys come from the seed and signatures are deterministic (RFC 6979), so the same seed signs the same bytes.
Source: Plaid documentation, Webhook verification.
"""

import base64
import datetime as dt
import hashlib
import json
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from sandbox.simulator.bank.randomness import derive, uuid4

# The order of P-256; a private key is a number from 1 to one less.
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(slots=True)
class SigningKey:
    """A key pair with its id and lifetime. Units: whole seconds since 1970, as in the JWK."""

    kid: str
    private: ec.EllipticCurvePrivateKey
    created_at: int
    expired_at: int | None = None

    def jwk(self) -> dict[str, object]:
        """Return the public key as `/webhook_verification_key/get` answers it."""
        point = self.private.public_key().public_numbers()
        return {
            "alg": "ES256",
            "created_at": self.created_at,
            "crv": "P-256",
            "expired_at": self.expired_at,
            "kid": self.kid,
            "kty": "EC",
            "use": "sig",
            "x": _base64(point.x.to_bytes(32, "big")),
            "y": _base64(point.y.to_bytes(32, "big")),
        }


class Keyring:
    """Hold all keys ever used; the newest one signs."""

    def __init__(self, seed: int, now: dt.datetime) -> None:
        self._seed = seed
        self.keys: dict[str, SigningKey] = {}
        self.current = self._create(now)

    def rotate(self, now: dt.datetime, *, expire_old: bool) -> SigningKey:
        """Create a new signing key; the old one expires now or stays valid."""
        if expire_old:
            self.current.expired_at = int(now.timestamp())
        self.current = self._create(now)
        return self.current

    def sign(self, body: bytes, issued_at: dt.datetime) -> str:
        """Sign a webhook's raw body; return the value of the header `Plaid-Verification`."""
        header = {"alg": "ES256", "kid": self.current.kid, "typ": "JWT"}
        claims = {"iat": int(issued_at.timestamp()), "request_body_sha256": hashlib.sha256(body).hexdigest()}
        signed = f"{_base64(_compact(header))}.{_base64(_compact(claims))}"
        der = self.current.private.sign(signed.encode(), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        r, s = decode_dss_signature(der)
        return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def _create(self, now: dt.datetime) -> SigningKey:
        rng = derive(self._seed, "webhook key", len(self.keys))
        key = SigningKey(
            kid=uuid4(rng),
            private=ec.derive_private_key(rng.randrange(1, _ORDER), ec.SECP256R1()),
            created_at=int(now.timestamp()),
        )
        self.keys[key.kid] = key
        return key


def key_id(jwt: str) -> str:
    """Return the id of the key that signed a webhook."""
    header = jwt.partition(".")[0]
    return str(json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"])


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
