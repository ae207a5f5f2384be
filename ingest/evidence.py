"""Webhooks as evidence: what each record of the log proves today, by itself and beside the others. Core."""

from functools import lru_cache

from msgspec import Struct, field

from ingest.reasons import Refused
from ingest.tokens import Token, strict_object
from ingest.verification import AHEAD_S_MAX, verify_again
from runtime.kafka.reader import Received
from schemas.encoding import codec
from schemas.errors import Halt, Quarantine
from schemas.log.records import Webhook

FAILURES_MAX = 1_000
"""Failures that are named, 200 bytes each; the rest is counted."""
KEYS_MAX = 10_000
"""Key ids that are remembered, 500 bytes each: Plaid has a handful a year."""

UNREADABLE = "not_a_webhook"
KEY_DIFFERS = "key_differs"
"""Another public key stands under this key id elsewhere in the log: one of the two is not Plaid's."""
KEY_NOT_YET = "key_not_made_yet"
"""By its own `created_at` the key was made after it had signed."""


class Failure(Struct, frozen=True):
    """A record that proves nothing, and why."""

    partition: int
    offset: int
    reason: str


class KeySeen(Struct):
    """A key of the log. Units: seconds since 1970, by the tokens that it signed."""

    key_id: str
    webhooks: int
    first_at: int
    last_at: int


class Evidence(Struct):
    """What was found. `without_body`: records whose body carried tokens; of those the hash stands for it."""

    checked: int = 0
    valid: int = 0
    without_body: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    keys: list[KeySeen] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """Records that prove nothing."""
        return self.checked - self.valid


class Examiner:
    """Looks at one record after another; what it remembers does not grow with them."""

    def __init__(self) -> None:
        self.evidence = Evidence()
        self._seen: dict[str, tuple[tuple[str, str], KeySeen]] = {}

    def look(self, record: Received) -> None:
        """Count one record. Raises: Halt, where there are more than KEYS_MAX keys."""
        self.evidence.checked += 1
        if len(self._seen) > KEYS_MAX:
            raise Halt(f"the log has webhooks of more than {KEYS_MAX} keys: ingest has not written it")
        reason = self._reason(record.value)
        if reason is None:
            self.evidence.valid += 1
            return
        self.evidence.reasons[reason] = self.evidence.reasons.get(reason, 0) + 1
        if len(self.evidence.failures) < FAILURES_MAX:
            self.evidence.failures.append(Failure(record.partition, record.offset, reason))

    def _reason(self, value: bytes) -> str | None:
        """Why a record proves nothing; None where it does."""
        try:
            webhook = codec.decode(Webhook, value)
        except Quarantine:
            return UNREADABLE
        self.evidence.without_body += webhook.body is None
        try:
            token = verify_again(webhook)
        except Refused as refusal:
            return refusal.reason.value
        created_at, public = _facts(webhook.jwk_json)
        if created_at > token.issued_at + AHEAD_S_MAX:
            return KEY_NOT_YET
        return self._key(token, public)

    def _key(self, token: Token, public: tuple[str, str]) -> str | None:
        if token.key_id not in self._seen:
            self._seen[token.key_id] = public, KeySeen(token.key_id, 0, token.issued_at, token.issued_at)
            self.evidence.keys.append(self._seen[token.key_id][1])
        first, seen = self._seen[token.key_id]
        if public != first:
            return KEY_DIFFERS
        seen.webhooks += 1
        seen.first_at, seen.last_at = min(seen.first_at, token.issued_at), max(seen.last_at, token.issued_at)
        return None


@lru_cache(maxsize=100)
def _facts(jwk_json: str) -> tuple[int, tuple[str, str]]:
    """When a key was made, and its point; of a JWK that was read before, so its members are there."""
    jwk = strict_object(jwk_json.encode())
    assert jwk is not None, "a key that has verified is a JSON object"
    created_at = jwk.get("created_at")
    return created_at if type(created_at) is int else 0, (jwk["x"], jwk["y"])
