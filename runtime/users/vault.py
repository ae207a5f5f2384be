"""Keys and what they lock: users' data keys under the key-encryption key, access tokens bound to their Items."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from schemas.errors import Halt

_NONCE_BYTES = 12
_VERSION = b"\x01"


class Vault:
    """Wraps and opens with AES-256-GCM under the key-encryption key.

    A KMS takes this class's place with the same four functions.
    """

    def __init__(self, master_key: bytes) -> None:
        self._cipher = AESGCM(master_key)

    def wrap_data_key(self, data_key: bytes, *, user: int, generation: int) -> bytes:
        """Lock a user's data key, bound to the user's number and the key's generation."""
        return self._lock(data_key, f"data-key/{user}/{generation}")

    def unwrap_data_key(self, wrapped: bytes, *, user: int, generation: int) -> bytes:
        """Open a user's data key.

        Raises: Halt, where it does not open: the key-encryption key is another one, and nothing must go on so.
        """
        return self._open(wrapped, f"data-key/{user}/{generation}")

    def seal_token(self, token: str, *, item_id: str) -> bytes:
        """Lock an access token, bound to its Item."""
        return self._lock(token.encode(), f"access-token/{item_id}")

    def open_token(self, sealed: bytes, *, item_id: str) -> str:
        """Open an access token.

        Raises: Halt, where it does not open for this Item.
        """
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
        except (InvalidTag, ValueError) as error:  # ValueError: what is there is too short to hold a nonce
            raise Halt(
                f"the key-encryption key does not open {bound_to}: is TARTAN_KEY_ENCRYPTION_KEY right?"
            ) from error
