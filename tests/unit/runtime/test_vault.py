"""The vault: what it locks opens with the same key and for the same purpose only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.users.vault import Vault
from schemas.errors import Halt

VAULT = Vault(b"k" * 32)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**63 - 1), st.integers(1, 9))
def test_a_data_key_opens_again(data_key: bytes, user: int, generation: int) -> None:
    wrapped = VAULT.wrap_data_key(data_key, user=user, generation=generation)

    assert VAULT.unwrap_data_key(wrapped, user=user, generation=generation) == data_key
    assert data_key not in wrapped


def test_the_same_secret_is_locked_differently_each_time() -> None:
    assert VAULT.seal_token("token", item_id="i") != VAULT.seal_token("token", item_id="i")


def test_a_data_key_opens_for_its_user_and_generation_only() -> None:
    wrapped = VAULT.wrap_data_key(b"d" * 32, user=1, generation=1)

    for other in ({"user": 2, "generation": 1}, {"user": 1, "generation": 2}, {"user": 11, "generation": 1}):
        with pytest.raises(Halt, match=f"data-key/{other['user']}/{other['generation']}"):
            VAULT.unwrap_data_key(wrapped, **other)


def test_a_data_key_is_no_token_and_a_token_no_data_key() -> None:
    token = VAULT.seal_token("t", item_id="1/1")

    with pytest.raises(Halt):
        VAULT.unwrap_data_key(token, user=1, generation=1)


@given(st.data())
def test_one_changed_bit_is_noticed(data: st.DataObject) -> None:
    sealed = bytearray(VAULT.seal_token("access-sandbox-1", item_id="i"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8

    with pytest.raises(Halt, match="access-token/i"):
        VAULT.open_token(bytes(sealed), item_id="i")


@pytest.mark.parametrize("length", range(30))
def test_what_was_cut_short_is_a_halt_and_no_other_error(length: int) -> None:
    sealed = VAULT.seal_token("a", item_id="i")[:length]
    assert len(sealed) == length  # the whole has 30 bytes: version, nonce, text, tag

    with pytest.raises(Halt):
        VAULT.open_token(sealed, item_id="i")


def test_a_message_shows_neither_key_nor_secret() -> None:
    sealed = VAULT.seal_token("access-sandbox-1", item_id="i")

    with pytest.raises(Halt) as refused:
        Vault(b"x" * 32).open_token(sealed, item_id="i")

    assert "access-sandbox" not in str(refused.value)
    assert "xxx" not in str(refused.value)
