"""Vault: wraps users' data keys and seals access tokens under the key-encryption key."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from schemas.errors import Halt

_NONCE_BYTES = 12
_VERSION = b"\x01"


class Vault:
    """Wraps and unwraps with AES-256-GCM. A KMS client with the same four methods can replace it."""

    def __init__(self, master_key: bytes) -> None:
        self._cipher = AESGCM(master_key)

    def wrap_data_key(self, data_key: bytes, *, user: int, generation: int) -> bytes:
        """Wrap a user's data key, bound to the user's number and the key's generation."""
        return self._lock(data_key, f"data-key/{user}/{generation}")

    def unwrap_data_key(self, wrapped: bytes, *, user: int, generation: int) -> bytes:
        """Unwrap a user's data key. Raises: Halt, where the key-encryption key is another one."""
        return self._open(wrapped, f"data-key/{user}/{generation}")

    def seal_token(self, token: str, *, item_id: str) -> bytes:
        """Seal an access token, bound to its Item."""
        return self._lock(token.encode(), f"access-token/{item_id}")

    def open_token(self, sealed: bytes, *, item_id: str) -> str:
        """Open an access token. Raises: Halt, where it does not open for this Item."""
        return self._open(sealed, f"access-token/{item_id}").decode()

    def _lock(self, secret: bytes, bound_to: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret, bound_to.encode())

    def _open(self, locked: bytes, bound_to: str) -> bytes:
        nonce, sealed = locked[1 : 1 + _NONCE_BYTES], locked[1 + _NONCE_BYTES :]
        if locked[:1] != _VERSION:
            raise Halt(f"{bound_to} was locked by another version of this code")
        try:
            return self._cipher.decrypt(nonce, sealed, bound_to.encode())
        except (InvalidTag, ValueError) as error:  # ValueError: too short for a nonce
            raise Halt(
                f"the key-encryption key does not open {bound_to}: is TARTAN_KEY_ENCRYPTION_KEY right?"
            ) from error
