"""Verify webhooks of the log as evidence: each by itself, and the keys of all records against each other. Core."""

from functools import lru_cache

from msgspec import Struct, field

from ingest.refusals import WebhookRefused
from ingest.tokens import Token, parse_object
from ingest.verification import AHEAD_S_MAX, verify_record
from runtime.kafka.reader import Received
from schemas.encoding import codec
from schemas.errors import Halt, Quarantine
from schemas.log.records import Webhook

FAILURES_MAX = 1_000
"""Failures that are listed, 200 bytes each; the rest is counted."""
KEYS_MAX = 10_000
"""Key ids in memory, 500 bytes each: Plaid has a handful a year."""

UNREADABLE = "not_a_webhook"
KEY_DIFFERS = "key_differs"
"""Another record of the log has another public key under this key id: one of the two is not Plaid's."""
KEY_NOT_YET = "key_not_made_yet"
"""By its own `created_at` the key was made after it had signed."""


class Failure(Struct, frozen=True):
    """A record that proves nothing, and why."""

    partition: int
    offset: int
    reason: str


class KeyUse(Struct):
    """Use of a key in the log. Units: seconds since 1970, by the tokens that it signed."""

    key_id: str
    webhooks: int
    first_at: int
    last_at: int


class Evidence(Struct):
    """Result over all records. `without_body`: records whose body carried tokens, verified by its hash alone."""

    checked: int = 0
    valid: int = 0
    without_body: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    keys: list[KeyUse] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """Number of records that prove nothing."""
        return self.checked - self.valid


class EvidenceChecker:
    """Checker of one record after another; its memory does not grow with them."""

    def __init__(self) -> None:
        self.evidence = Evidence()
        self._uses: dict[str, tuple[tuple[str, str], KeyUse]] = {}

    def check(self, record: Received) -> None:
        """Check one record. Raises: Halt, where there are more than KEYS_MAX keys."""
        self.evidence.checked += 1
        if len(self._uses) > KEYS_MAX:
            raise Halt(f"the log has webhooks of more than {KEYS_MAX} keys: ingest has not written it")
        reason = self._failure(record.value)
        if reason is None:
            self.evidence.valid += 1
            return
        self.evidence.reasons[reason] = self.evidence.reasons.get(reason, 0) + 1
        if len(self.evidence.failures) < FAILURES_MAX:
            self.evidence.failures.append(Failure(record.partition, record.offset, reason))

    def _failure(self, value: bytes) -> str | None:
        """Return why a record proves nothing; None where it is valid."""
        try:
            webhook = codec.decode(Webhook, value)
        except Quarantine:
            return UNREADABLE
        self.evidence.without_body += webhook.body is None
        try:
            token = verify_record(webhook)
        except WebhookRefused as refusal:
            return refusal.reason.value
        created_at, point = _created_at_and_point(webhook.jwk_json)
        if created_at > token.issued_at + AHEAD_S_MAX:
            return KEY_NOT_YET
        return self._count_key(token, point)

    def _count_key(self, token: Token, point: tuple[str, str]) -> str | None:
        if token.key_id not in self._uses:
            self._uses[token.key_id] = point, KeyUse(token.key_id, 0, token.issued_at, token.issued_at)
            self.evidence.keys.append(self._uses[token.key_id][1])
        first_point, use = self._uses[token.key_id]
        if point != first_point:
            return KEY_DIFFERS
        use.webhooks += 1
        use.first_at, use.last_at = min(use.first_at, token.issued_at), max(use.last_at, token.issued_at)
        return None


@lru_cache(maxsize=100)
def _created_at_and_point(jwk_json: str) -> tuple[int, tuple[str, str]]:
    """Return when a verified key was made, and its point."""
    jwk = parse_object(jwk_json.encode())
    assert jwk is not None, "a key that has verified is a JSON object"
    created_at = jwk.get("created_at")
    return created_at if type(created_at) is int else 0, (jwk["x"], jwk["y"])
