"""Settings are checked at start, by name, and never show a secret."""

import base64
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from runtime import settings
from runtime.plaid.client import Plaid
from runtime.users.vault import Vault
from schemas.errors import Halt

KEY = base64.b64encode(b"k" * 32).decode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TARTAN_PORT", "70000"),
        ("TARTAN_PARTITIONS", "0"),
        ("TARTAN_PLAID_ENVIRONMENT", "development"),
        ("TARTAN_WEBHOOK_ANSWER_S", "10"),
        ("TARTAN_KEY_ENCRYPTION_KEY", "c2hvcnQ="),
        ("TARTAN_KEY_ENCRYPTION_KEY", "%%%"),
        ("TARTAN_TOPIC_PREFIX", "no spaces"),
        ("TARTAN_FETCH_CONCURRENCY", "0"),
        ("TARTAN_PLAID_LIMITS", "generous"),
        ("TARTAN_PLAID_LIMITS", "production,transactions/sync=0/10"),
        ("TARTAN_TENANT_WEIGHTS", "acme"),
        ("TARTAN_TENANT_WEIGHTS", "acme:0"),
        ("TARTAN_REMOVALS_SHARE_MAX", "1.5"),
        ("TARTAN_RECORD_BYTES_MAX", "8191"),
        ("TARTAN_ALERTS_URL", "hooks.example/KEY-of-the-channel"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(Halt, match=name) as refused:
        settings.load()

    if "KEY" in name or "KEY" in value:
        assert value not in str(refused.value)


def test_timeouts_out_of_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARTAN_LOCK_TIMEOUT_S", "90")

    with pytest.raises(Halt, match="lock_timeout_s"):
        settings.load()


def test_limits_are_a_plan_and_changes_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARTAN_PLAID_ENVIRONMENT", "production")
    monkeypatch.setenv("TARTAN_PLAID_LIMITS", "/transactions/sync=100/5000")

    limits = settings.load().limits()

    assert limits["transactions/sync"] == (100, 5000)
    assert limits["item/get"] == (15, 5000)


def test_weights_are_tenants_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARTAN_TENANT_WEIGHTS", "acme:2, corner:shop:0.5")

    assert settings.load().weights() == {"acme": 2.0, "corner:shop": 0.5}


def test_without_any_key_the_message_says_what_to_set() -> None:
    with pytest.raises(Halt, match="TARTAN_KEY_ENCRYPTION_KEY"):
        settings.Settings().master_key()


def test_the_key_is_read_from_the_environment_or_a_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    file = f"{tmp_path}/key"
    with open(file, "w", encoding="ascii") as out:
        out.write(KEY + "\n")
    monkeypatch.setenv("TARTAN_KEY_ENCRYPTION_KEY_FILE", file)

    assert settings.load().master_key() == b"k" * 32


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARTAN_PLAID_SECRET", "very-secret")
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", "postgresql://me:very-secret@db/tartan")
    monkeypatch.setenv("TARTAN_API_KEYS", "bank:very-secret")

    assert "very-secret" not in repr(settings.load())


def test_an_api_key_that_is_no_pair_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARTAN_API_KEYS", "acme:k1,broken")

    with pytest.raises(Halt, match="TARTAN_API_KEYS"):
        settings.load().tenants()


def test_an_api_key_of_two_tenants_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARTAN_API_KEYS", "acme:hush-1,bank:hush-2,corp:hush-1")

    with pytest.raises(Halt, match="entry 3 has the key of an entry before") as refused:
        settings.load().tenants()

    assert "hush" not in str(refused.value)


async def test_an_empty_webhook_address_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def call(self: Plaid, endpoint: object, request: Any, read: object) -> Any:
        asked.append(request)
        return SimpleNamespace(link_token="", expiration="", public_token="")

    monkeypatch.setattr(Plaid, "_call", call)
    monkeypatch.setenv("TARTAN_WEBHOOK_URL", "")
    plaid = Plaid(settings.load().model_copy(update={"plaid_client_id": "me", "plaid_secret": SecretStr("hush")}))
    await plaid.link_token("ada")
    await plaid.sandbox_public_token("ins_1")
    await plaid.close()

    assert len(asked) == 2
    assert "webhook" not in str([request.to_dict() for request in asked])


def test_a_token_opens_for_its_own_item_only() -> None:
    vault = Vault(b"k" * 32)
    sealed = vault.seal_token("access-sandbox-1", item_id="item-1")

    assert vault.open_token(sealed, item_id="item-1") == "access-sandbox-1"
    assert b"access-sandbox" not in sealed
    with pytest.raises(Halt, match="item-2"):
        vault.open_token(sealed, item_id="item-2")


def test_a_data_key_does_not_unwrap_under_another_master_key() -> None:
    wrapped = Vault(b"k" * 32).wrap_data_key(b"d" * 32, user=7, generation=1)

    assert Vault(b"k" * 32).unwrap_data_key(wrapped, user=7, generation=1) == b"d" * 32
    with pytest.raises(Halt, match="TARTAN_KEY_ENCRYPTION_KEY"):
        Vault(b"x" * 32).unwrap_data_key(wrapped, user=7, generation=1)
