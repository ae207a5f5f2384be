"""Each way in which a stored webhook can be altered is found and named; what was not altered proves itself."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from ingest.evidence import KEY_DIFFERS, KEY_NOT_YET, UNREADABLE, Evidence, EvidenceChecker
from ingest.refusals import Reason
from runtime.kafka.reader import Received
from schemas.encoding import codec
from schemas.log.records import Webhook
from tests.unit.ingest.test_verification import (
    BODY,
    KEY_ID,
    LINK_BODY,
    NOW_S,
    PRIVATE,
    STRANGER,
    Sent,
    carrying,
    claims,
    header,
    jwk_of,
    raw_signature,
    take,
)


def stored(sent: Sent | None = None) -> Webhook:
    """What ingest writes of a genuine webhook."""
    return take(sent or Sent()).record


def examined(*webhooks: Webhook) -> Evidence:
    checker = EvidenceChecker()
    for offset, webhook in enumerate(webhooks):
        checker.check(Received(1, offset, None, codec.encode(webhook), {}, NOW_S * 1000))
    return checker.evidence


def with_token(sent: Sent, webhook: Webhook) -> Webhook:
    return msgspec.structs.replace(webhook, jwt=sent.token())


def signed_by_another(webhook: Webhook) -> Webhook:
    """Token and key replaced together: by itself the record is sound."""
    forged = replace(Sent(), sign=lambda signed: raw_signature(STRANGER, signed), jwk=jwk_of(STRANGER))
    return msgspec.structs.replace(webhook, jwt=forged.token(), jwk_json=forged.jwk.decode())


change = msgspec.structs.replace
ALTERED: dict[str, tuple[Callable[[Webhook], Webhook], str]] = {
    "a byte of the body": (
        lambda webhook: change(webhook, body=BODY.replace(b"item-1", b"item-2")),
        Reason.BODY_DIFFERS,
    ),
    "the body and its hash": (
        lambda webhook: change(webhook, body=b"{}", body_sha256=hashlib.sha256(b"{}").digest()),
        Reason.BODY_DIFFERS,
    ),
    "the hash in the token": (
        lambda webhook: with_token(claims(request_body_sha256=hashlib.sha256(b"{}").hexdigest()), webhook),
        Reason.BODY_DIFFERS,
    ),
    "the token's time, signed by nobody": (
        lambda webhook: change(
            webhook, jwt=".".join([*claims(iat=NOW_S - 1).token().split(".")[:2], webhook.jwt.split(".")[2]])
        ),
        Reason.SIGNATURE_WRONG,
    ),
    "the key": (lambda webhook: change(webhook, jwk_json=jwk_of(STRANGER).decode()), Reason.SIGNATURE_WRONG),
    "the key's id": (
        lambda webhook: change(webhook, jwk_json=jwk_of(PRIVATE, kid="another").decode()),
        Reason.KEY_UNUSABLE,
    ),
    "a key that had ended": (
        lambda webhook: change(webhook, jwk_json=jwk_of(PRIVATE, expired_at=NOW_S - 60).decode()),
        Reason.KEY_EXPIRED,
    ),
    "a key that was not made yet": (
        lambda webhook: change(webhook, jwk_json=jwk_of(PRIVATE, created_at=NOW_S + 60).decode()),
        KEY_NOT_YET,
    ),
    "received later": (lambda webhook: change(webhook, received_at=(NOW_S + 301) * 1_000_000), Reason.STALE),
    "received before it was sent": (
        lambda webhook: change(webhook, received_at=(NOW_S - 31) * 1_000_000),
        Reason.FUTURE,
    ),
    "called stale": (lambda webhook: change(webhook, stale=True), Reason.STALE),
    "no token": (lambda webhook: change(webhook, jwt=""), Reason.TOKEN_MISSING),
    "another algorithm": (lambda webhook: with_token(header(alg="HS256"), webhook), Reason.ALGORITHM),
    "token and key together": (signed_by_another, KEY_DIFFERS),
}


@pytest.mark.parametrize("altered", ALTERED)
def test_an_altered_record_is_found_at_its_place_with_its_reason(altered: str) -> None:
    alter, reason = ALTERED[altered]

    result = examined(stored(), alter(stored()), stored())

    assert (result.checked, result.valid, result.violations) == (3, 2, 1)
    assert [(webhook.partition, webhook.offset, webhook.reason) for webhook in result.failures] == [(1, 1, reason)]
    assert result.reasons == {reason: 1}


def test_a_body_that_carried_tokens_is_proved_by_its_hash() -> None:
    hidden = stored(carrying(LINK_BODY))
    assert hidden.body is None

    result = examined(hidden, change(hidden, body_sha256=hashlib.sha256(BODY).digest()))

    assert (result.valid, result.without_body, result.reasons) == (1, 2, {Reason.BODY_DIFFERS: 1})


def test_what_is_no_webhook_is_a_failure_and_not_the_end() -> None:
    checker = EvidenceChecker()
    checker.check(Received(0, 7, None, b"\xff\x00", {}, 0))

    assert [(webhook.offset, webhook.reason) for webhook in checker.evidence.failures] == [(7, UNREADABLE)]


def test_keys_are_told_with_the_time_in_which_they_signed() -> None:
    [key] = examined(stored(claims(iat=NOW_S - 9)), stored(), stored(claims(iat=NOW_S - 3))).keys

    assert (key.key_id, key.webhooks, key.first_at, key.last_at) == (KEY_ID, 3, NOW_S - 9, NOW_S)
