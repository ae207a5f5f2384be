"""Derive seeded random streams, one for each purpose, and draw ids and tokens."""

import base64
import random
import uuid

ID_LENGTH = 37
"""Length of Plaid's ids; 37 characters of 62 are 220 bits, so ids never collide."""

# 28 bytes are 38 characters of base64: one more than an id needs, so no padding is ever cut into.
_ID_BYTES = 28
_TO_BASE62 = bytes.maketrans(b"+/=", b"AzQ")


def derive(seed: int | str, *purpose: object) -> random.Random:
    """Return the random stream of one purpose; a new purpose never changes the numbers of another."""
    return random.Random("/".join((str(seed), *map(str, purpose))))


def plaid_id(rng: random.Random) -> str:
    """Draw an id of Plaid's form: 37 letters and digits, case-sensitive."""
    return base64.b64encode(rng.randbytes(_ID_BYTES)).translate(_TO_BASE62)[:ID_LENGTH].decode("ascii")


def token(kind: str, rng: random.Random) -> str:
    """Draw a token of Plaid's form, `access-sandbox-<uuid>`.

    Source: Plaid API, Tokens.
    """
    return f"{kind}-sandbox-{uuid4(rng)}"


def uuid4(rng: random.Random) -> str:
    """Draw a version 4 UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def share(seed: int | str, *purpose: object) -> float:
    """Return a fixed number in [0, 1) for a decision that must not depend on earlier draws."""
    return derive(seed, *purpose).random()
