"""Genuine webhooks are taken, and every forgery is refused for its own reason."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import webhook_record
from ingest.refusals import Reason, WebhookRefused
from ingest.tokens import parse
from ingest.verification import check_body, check_signature, read_key, verify_record
from schemas.log.records import Webhook

NOW_S = 1_790_000_000
KEY_ID = "bfbd5111-8e33-4643-8ced-b2e642a72f3c"
BODY = b'{\n  "environment": "sandbox",\n  "item_id": "item-1",\n  "webhook_code": "SYNC_UPDATES_AVAILABLE",\n'
BODY += b'  "webhook_type": "TRANSACTIONS"\n}'
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

PRIVATE = ec.derive_private_key(0xA11CE, ec.SECP256R1())
STRANGER = ec.derive_private_key(0xBAD, ec.SECP256R1())


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def jwk_of(private: ec.EllipticCurvePrivateKey, **changed: object) -> bytes:
    point = private.public_key().public_numbers()
    value = {
        "alg": "ES256",
        "created_at": 1,
        "crv": "P-256",
        "expired_at": None,
        "kid": KEY_ID,
        "kty": "EC",
        "use": "sig",
        "x": b64(point.x.to_bytes(32, "big")),
        "y": b64(point.y.to_bytes(32, "big")),
        **changed,
    }
    return dumps({name: member for name, member in value.items() if member is not ...})


def raw_signature(private: ec.EllipticCurvePrivateKey, signed: bytes) -> bytes:
    r, s = decode_dss_signature(private.sign(signed, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@dataclass(frozen=True)
class Sent:
    """A webhook as somebody sends it; by default just as Plaid does."""

    body: bytes = BODY
    header: bytes = dumps({"alg": "ES256", "kid": KEY_ID, "typ": "JWT"})
    claims: bytes = dumps({"iat": NOW_S, "request_body_sha256": hashlib.sha256(BODY).hexdigest()})
    sign: Callable[[bytes], bytes] = field(default=lambda signed: raw_signature(PRIVATE, signed))
    finish: Callable[[str], str] = field(default=lambda token: token)
    jwk: bytes = jwk_of(PRIVATE)

    def token(self) -> str:
        signed = f"{b64(self.header)}.{b64(self.claims)}"
        return self.finish(f"{signed}.{b64(self.sign(signed.encode()))}")


def header(**changed: object) -> Sent:
    value = {"alg": "ES256", "kid": KEY_ID, "typ": "JWT", **changed}
    return Sent(header=dumps({name: member for name, member in value.items() if member is not ...}))


def claims(**changed: object) -> Sent:
    value = {"iat": NOW_S, "request_body_sha256": hashlib.sha256(BODY).hexdigest(), **changed}
    return Sent(claims=dumps({name: member for name, member in value.items() if member is not ...}))


def carrying(body: bytes, **changed: object) -> Sent:
    return replace(claims(request_body_sha256=hashlib.sha256(body).hexdigest(), **changed), body=body)


def part(number: int, change: Callable[[str], str]) -> Callable[[str], str]:
    def changed(token: str) -> str:
        parts = token.split(".")
        parts[number] = change(parts[number])
        return ".".join(parts)

    return changed


def other_last_character(text: str) -> str:
    """The same bytes in base64 whose last, unused bits are not zero."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) + 1]


def malleable(signed: bytes) -> bytes:
    signature = raw_signature(PRIVATE, signed)
    s = ORDER - int.from_bytes(signature[32:], "big")
    return signature[:32] + s.to_bytes(32, "big")


def hs256_under_the_public_key(signed: bytes) -> bytes:
    return hmac.digest(jwk_of(PRIVATE), signed, "sha256")


def take(sent: Sent, *, stale: Literal["reject", "demote"] = "reject") -> webhook_record.WebhookRecord:
    """The whole decision as the endpoint makes it, without its network."""
    token = parse(sent.token())
    check_body(token, sent.body)
    key = read_key(sent.jwk, key_id=token.key_id)
    check_signature(token, key)
    return webhook_record.build_record(
        token, key, sent.body, received_at=NOW_S * 1_000_000, stale=stale, environment="sandbox"
    )


R = Reason
LINK_BODY = dumps({"webhook_type": "LINK", "webhook_code": "SESSION_FINISHED", "public_tokens": ["public-1"]})
OTHER_HASH = hashlib.sha256(b"another body").hexdigest()
TRUE_HASH = hashlib.sha256(BODY).hexdigest()

TABLE: list[tuple[str, Sent, Reason | None]] = [
    # Genuine, and not all alike.
    ("as Plaid sends it", Sent(), None),
    ("no typ", header(typ=...), None),
    ("a header member that Plaid may add", header(ppt="shaken"), None),
    ("a claim that Plaid may add", claims(jti="1"), None),
    ("header with spaces", Sent(header=b'{ "typ" : "JWT", "kid" : "%s", "alg" : "ES256" }' % KEY_ID.encode()), None),
    ("the signature's other s", Sent(sign=malleable), None),
    ("issued five minutes ago", claims(iat=NOW_S - 300), None),
    ("issued half a minute ahead", claims(iat=NOW_S + 30), None),
    ("an empty body", carrying(b""), None),
    ("a body that is no JSON", carrying(b"\xff\xfe\x00"), None),
    ("a body that is a list", carrying(b"[1,2]"), None),
    ("a type that nobody knows", carrying(dumps({"webhook_type": "NEW", "webhook_code": "X"})), None),
    ("a body of type LINK", carrying(LINK_BODY), None),
    ("no environment in the body", carrying(dumps({"item_id": "item-1"})), None),
    ("a body nested beyond reading", carrying(b"[" * 50_000), None),
    # The token's form.
    ("no token", Sent(finish=lambda _: ""), R.TOKEN_MISSING),
    ("a token of 4,097 characters", Sent(finish=lambda token: token + "A" * (4097 - len(token))), R.TOKEN_TOO_LONG),
    ("a megabyte of token", Sent(finish=lambda _: "A" * 1_000_000), R.TOKEN_TOO_LONG),
    ("one part", Sent(finish=lambda token: token.split(".")[0]), R.TOKEN_MALFORMED),
    ("two parts", Sent(finish=lambda token: token.rsplit(".", 1)[0]), R.TOKEN_MALFORMED),
    ("four parts", Sent(finish=lambda token: token + ".AAAA"), R.TOKEN_MALFORMED),
    ("five parts, as JWE", Sent(finish=lambda token: token + ".AAAA.AAAA"), R.TOKEN_MALFORMED),
    ("an empty header", Sent(finish=part(0, lambda _: "")), R.TOKEN_MALFORMED),
    ("empty claims", Sent(finish=part(1, lambda _: "")), R.TOKEN_MALFORMED),
    ("an empty signature", Sent(finish=part(2, lambda _: "")), R.TOKEN_MALFORMED),
    ("padding", Sent(finish=part(0, lambda text: text + "=")), R.TOKEN_MALFORMED),
    ("padding of the signature", Sent(finish=part(2, lambda text: text + "==")), R.TOKEN_MALFORMED),
    ("a newline at the end", Sent(finish=lambda token: token + "\n"), R.TOKEN_MALFORMED),
    ("a space before it", Sent(finish=lambda token: " " + token), R.TOKEN_MALFORMED),
    ("Bearer before it", Sent(finish=lambda token: "Bearer " + token), R.TOKEN_MALFORMED),
    ("the alphabet of plain base64", Sent(finish=part(2, lambda text: "+/" + text[2:])), R.TOKEN_MALFORMED),
    ("letters that are no ASCII", Sent(finish=part(2, lambda text: "Ａ" + text[1:])), R.TOKEN_MALFORMED),
    ("a NUL", Sent(finish=part(1, lambda text: text + "\0")), R.TOKEN_MALFORMED),
    ("a lone surrogate", Sent(finish=part(1, lambda text: text + "\udcff")), R.TOKEN_MALFORMED),
    ("a signature of 4n+1 characters", Sent(finish=part(2, lambda text: text[:85])), R.TOKEN_MALFORMED),
    ("unused bits set in the signature", Sent(finish=part(2, other_last_character)), R.TOKEN_MALFORMED),
    # The header.
    ("a header that is no JSON", Sent(header=b"ES256"), R.HEADER_MALFORMED),
    ("a header that is a list", Sent(header=b'["ES256"]'), R.HEADER_MALFORMED),
    ("a header in UTF-16", Sent(header='{"alg":"ES256"}'.encode("utf-16")), R.HEADER_MALFORMED),
    ("a header with a byte order mark", Sent(header=b"\xef\xbb\xbf" + Sent().header), R.HEADER_MALFORMED),
    ("alg named twice", Sent(header=b'{"alg":"none","alg":"ES256","kid":"%s"}' % KEY_ID.encode()), R.HEADER_MALFORMED),
    ("a header nested beyond reading", Sent(header=b"[" * 2_700), R.HEADER_MALFORMED),
    ("alg none", header(alg="none"), R.ALGORITHM),
    ("alg None", header(alg="None"), R.ALGORITHM),
    ("alg none without a signature", replace(header(alg="none"), sign=lambda _: b"\0"), R.ALGORITHM),
    ("HS256 under the public key", replace(header(alg="HS256"), sign=hs256_under_the_public_key), R.ALGORITHM),
    ("HS384", header(alg="HS384"), R.ALGORITHM),
    ("RS256", header(alg="RS256"), R.ALGORITHM),
    ("ES384", header(alg="ES384"), R.ALGORITHM),
    ("es256 in small letters", header(alg="es256"), R.ALGORITHM),
    ("a list of algs", header(alg=["ES256"]), R.ALGORITHM),
    ("no alg", header(alg=...), R.ALGORITHM),
    (
        "a key of the sender's own",
        replace(header(jwk=json.loads(jwk_of(STRANGER))), sign=lambda signed: raw_signature(STRANGER, signed)),
        R.HEADER_FORBIDDEN,
    ),
    ("an address of keys", header(jku="https://example.com/keys"), R.HEADER_FORBIDDEN),
    ("an address of certificates", header(x5u="https://example.com/c"), R.HEADER_FORBIDDEN),
    ("a chain of certificates", header(x5c=["MIIB"]), R.HEADER_FORBIDDEN),
    ("crit", header(crit=["exp"]), R.HEADER_FORBIDDEN),
    ("an unencoded payload", header(b64=False), R.HEADER_FORBIDDEN),
    ("compressed", header(zip="DEF"), R.HEADER_FORBIDDEN),
    ("another type", header(typ="at+jwt"), R.TYPE),
    ("a type that is null", header(typ=None), R.TYPE),
    ("no kid", header(kid=...), R.KEY_ID),
    ("an empty kid", header(kid=""), R.KEY_ID),
    ("a number as kid", header(kid=7), R.KEY_ID),
    ("a kid that is a path", header(kid="../../etc/passwd"), R.KEY_ID),
    ("a kid that is SQL", header(kid="x' OR '1'='1"), R.KEY_ID),
    ("a kid with a newline", header(kid=KEY_ID + "\n"), R.KEY_ID),
    ("a kid of 101 letters", header(kid="k" * 101), R.KEY_ID),
    # The claims.
    ("claims that are no JSON", Sent(claims=b"iat"), R.CLAIMS_MALFORMED),
    ("claims that are a list", Sent(claims=b"[]"), R.CLAIMS_MALFORMED),
    ("no iat", claims(iat=...), R.CLAIMS_MALFORMED),
    ("iat as text", claims(iat=str(NOW_S)), R.CLAIMS_MALFORMED),
    ("iat as a float", claims(iat=float(NOW_S)), R.CLAIMS_MALFORMED),
    ("iat true", claims(iat=True), R.CLAIMS_MALFORMED),
    ("iat null", claims(iat=None), R.CLAIMS_MALFORMED),
    ("a negative iat", claims(iat=-1), R.CLAIMS_MALFORMED),
    ("iat beyond all time", claims(iat=2**41), R.CLAIMS_MALFORMED),
    ("iat NaN", Sent(claims=b'{"iat":NaN,"request_body_sha256":"%s"}' % TRUE_HASH.encode()), R.CLAIMS_MALFORMED),
    (
        "iat named twice",
        Sent(claims=b'{"iat":1,"iat":%d,"request_body_sha256":"%s"}' % (NOW_S, TRUE_HASH.encode())),
        R.CLAIMS_MALFORMED,
    ),
    ("no hash", claims(request_body_sha256=...), R.CLAIMS_MALFORMED),
    ("an empty hash", claims(request_body_sha256=""), R.CLAIMS_MALFORMED),
    ("a hash of 63 digits", claims(request_body_sha256=TRUE_HASH[:-1]), R.CLAIMS_MALFORMED),
    ("a hash in capitals", claims(request_body_sha256=TRUE_HASH.upper()), R.CLAIMS_MALFORMED),
    ("a hash that is a number", claims(request_body_sha256=int(TRUE_HASH, 16)), R.CLAIMS_MALFORMED),
    ("a hash in base64", claims(request_body_sha256=b64(bytes.fromhex(TRUE_HASH))), R.CLAIMS_MALFORMED),
    # The body.
    ("the hash of another body", claims(request_body_sha256=OTHER_HASH), R.BODY_DIFFERS),
    ("another body under a genuine token", Sent(body=b'{"item_id":"item-2"}'), R.BODY_DIFFERS),
    ("the same JSON written again", Sent(body=dumps(json.loads(BODY))), R.BODY_DIFFERS),
    ("a newline after the body", Sent(body=BODY + b"\n"), R.BODY_DIFFERS),
    ("the body cut off", Sent(body=BODY[:-1]), R.BODY_DIFFERS),
    ("no body", Sent(body=b""), R.BODY_DIFFERS),
    # The key.
    ("a key that Plaid has ended", Sent(jwk=jwk_of(PRIVATE, expired_at=NOW_S - 1)), R.KEY_EXPIRED),
    ("a key that will end", Sent(jwk=jwk_of(PRIVATE, expired_at=NOW_S + 3600)), R.KEY_EXPIRED),
    ("a key with another id", Sent(jwk=jwk_of(PRIVATE, kid="another")), R.KEY_UNUSABLE),
    ("a key of another curve", Sent(jwk=jwk_of(PRIVATE, crv="P-384")), R.KEY_UNUSABLE),
    ("a symmetric key", Sent(jwk=jwk_of(PRIVATE, kty="oct", k="AAAA")), R.KEY_UNUSABLE),
    ("a key for encryption", Sent(jwk=jwk_of(PRIVATE, use="enc")), R.KEY_UNUSABLE),
    ("a key for another algorithm", Sent(jwk=jwk_of(PRIVATE, alg="ES384")), R.KEY_UNUSABLE),
    ("a point that is not on the curve", Sent(jwk=jwk_of(PRIVATE, x=b64(b"\1" * 32))), R.KEY_UNUSABLE),
    ("a short coordinate", Sent(jwk=jwk_of(PRIVATE, y=b64(b"\1" * 31))), R.KEY_UNUSABLE),
    ("no coordinate", Sent(jwk=jwk_of(PRIVATE, x=...)), R.KEY_UNUSABLE),
    ("no JWK at all", Sent(jwk=b"null"), R.KEY_UNUSABLE),
    # The signature.
    ("signed by a stranger", Sent(sign=lambda signed: raw_signature(STRANGER, signed)), R.SIGNATURE_WRONG),
    ("a signature of other bytes", Sent(sign=lambda signed: raw_signature(PRIVATE, signed + b".")), R.SIGNATURE_WRONG),
    ("a signature of zeros", Sent(sign=lambda _: bytes(64)), R.SIGNATURE_WRONG),
    ("r and s equal to the order", Sent(sign=lambda _: ORDER.to_bytes(32, "big") * 2), R.SIGNATURE_WRONG),
    (
        "r and s exchanged",
        Sent(sign=lambda signed: raw_signature(PRIVATE, signed)[32:] + raw_signature(PRIVATE, signed)[:32]),
        R.SIGNATURE_WRONG,
    ),
    (
        "a signature in DER",
        Sent(sign=lambda signed: PRIVATE.sign(signed, ec.ECDSA(hashes.SHA256()))),
        R.SIGNATURE_MALFORMED,
    ),
    (
        "a signature with a byte more",
        Sent(sign=lambda signed: raw_signature(PRIVATE, signed) + b"\0"),
        R.SIGNATURE_MALFORMED,
    ),
    (
        "claims changed after signing",
        Sent(finish=part(1, lambda _: b64(dumps({"iat": NOW_S - 1, "request_body_sha256": TRUE_HASH})))),
        R.SIGNATURE_WRONG,
    ),
    # Time and place.
    ("issued five minutes and a second ago", claims(iat=NOW_S - 301), R.STALE),
    ("issued in 1970", claims(iat=0), R.STALE),
    ("issued 31 s ahead", claims(iat=NOW_S + 31), R.FUTURE),
    ("issued in milliseconds", claims(iat=NOW_S * 1000), R.CLAIMS_MALFORMED),
    ("of production", carrying(BODY.replace(b"sandbox", b"production")), R.ENVIRONMENT),
    ("of an environment that is a number", carrying(dumps({"environment": 1})), R.ENVIRONMENT),
]


@pytest.mark.parametrize(("sent", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_webhook_is_taken_or_refused_for_its_own_reason(sent: Sent, expected: Reason | None) -> None:
    if expected is None:
        entry = take(sent)

        assert entry.record.jwt == sent.token()
        assert verify_record(entry.record).key_id == KEY_ID
    else:
        with pytest.raises(WebhookRefused) as refused:
            take(sent)

        assert refused.value.reason is expected


def test_the_table_has_at_least_sixty_rows_and_each_reason_of_the_core_occurs_in_it() -> None:
    reasons = {row[2] for row in TABLE}

    assert len(TABLE) >= 60
    assert set(Reason) - reasons == {Reason.TOKEN_REPEATED, Reason.KEY_UNKNOWN}


@settings(deadline=None)
@given(offset=st.integers(0, len(BODY) - 1), flip=st.integers(1, 255))
def test_a_body_with_one_byte_changed_is_refused(offset: int, flip: int) -> None:
    changed = bytearray(BODY)
    changed[offset] ^= flip

    with pytest.raises(WebhookRefused):
        take(Sent(body=bytes(changed)))


@settings(deadline=None)
@given(offset=st.integers(0, len(Sent().token()) - 1), flip=st.integers(1, 255))
def test_a_token_with_one_byte_changed_is_refused(offset: int, flip: int) -> None:
    changed = bytearray(Sent().token().encode())
    changed[offset] ^= flip

    with pytest.raises(WebhookRefused):
        take(Sent(finish=lambda _: changed.decode("utf-8", "surrogateescape")))


@settings(deadline=None)
@given(token=st.text(max_size=300))
def test_any_text_is_refused_and_never_an_error(token: str) -> None:
    with pytest.raises(WebhookRefused):
        parse(token)


@settings(deadline=None)
@given(body=st.binary(max_size=300) | st.from_regex(rb'\{"item_id":.{0,40}\}', fullmatch=True))
def test_any_body_can_be_read(body: bytes) -> None:
    fields = webhook_record.read_body(body)

    assert fields.item_id is None or fields.item_id.encode()


def test_demoted_stale_webhooks_are_taken_and_marked() -> None:
    entry = take(claims(iat=NOW_S - 3600), stale="demote")

    assert entry.record.stale
    verify_record(entry.record)
    with pytest.raises(WebhookRefused, match="future"):
        take(claims(iat=NOW_S + 31), stale="demote")


def test_the_record_is_keyed_by_its_item_where_the_body_names_one() -> None:
    def key(body: object) -> bytes | None:
        return take(carrying(dumps(body))).key

    assert key({"item_id": "item-1"}) == b"item-1"
    assert key({"item_id": "ž"}) == "ž".encode()
    for body in ({}, {"item_id": 1}, {"item_id": ""}, {"item_id": "i" * 257}, ["item_id"]):
        assert key(body) is None


@pytest.mark.parametrize(
    "body",
    [LINK_BODY, dumps({"webhook_type": "LINK"}), dumps({"webhook_type": "NEW", "event": [{"link_token": "link-1"}]})],
)
def test_of_a_body_that_carries_tokens_the_hash_is_kept_alone(body: bytes) -> None:
    record = take(carrying(body)).record

    assert record.body is None
    assert record.body_sha256 == hashlib.sha256(body).digest()
    verify_record(record)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"body": b"x"}, Reason.BODY_DIFFERS),
        ({"body_sha256": bytes(32)}, Reason.BODY_DIFFERS),
        ({"jwk_json": jwk_of(STRANGER).decode()}, Reason.SIGNATURE_WRONG),
        ({"stale": True}, Reason.STALE),
        ({"received_at": (NOW_S + 301) * 1_000_000}, Reason.STALE),
        ({"received_at": 0}, Reason.FUTURE),
    ],
)
def test_a_stored_webhook_that_was_changed_does_not_verify_again(changed: dict[str, Any], reason: Reason) -> None:
    record = take(Sent()).record
    whole = {name: getattr(record, name) for name in Webhook.__struct_fields__}

    with pytest.raises(WebhookRefused) as refused:
        verify_record(Webhook(**{**whole, **changed}))

    assert refused.value.reason is reason


def test_a_clock_that_is_late_shows() -> None:
    assert take(claims(iat=NOW_S + 3)).ahead_s == 3.0
    assert take(claims(iat=NOW_S - 3)).ahead_s == 0.0
