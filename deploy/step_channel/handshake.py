"""Both ends prove that they know the application's secret before anything else is said.

    server → client   Challenge(version, nonce_s)
    client → server   Answer(version, nonce_c, HMAC(secret, "client", version, nonce_s, nonce_c))
    server → client   Welcome(HMAC(secret, "server", version, nonce_s, nonce_c), drafter's info)

The proof covers the opening only; frames after it are neither signed nor encrypted, so the network
between the nodes is trusted as Ray's own traffic trusts it.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Literal

from deploy.step_channel.messages import PROTOCOL_VERSION

NONCE_BYTES = 32
MIN_SECRET_BYTES = 16


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def proof(
    secret: bytes, role: Literal["client", "server"], nonce_server: bytes, nonce_client: bytes
) -> bytes:
    """HMAC-SHA256 of the role, the version and both nonces. The role keeps a reflected proof of one
    side from passing as the other's."""
    message = b"\0".join((b"smart-serve step channel", role.encode(), b"%d" % PROTOCOL_VERSION))
    return hmac.digest(secret, message + nonce_server + nonce_client, "sha256")


def proof_holds(
    mac: bytes,
    secret: bytes,
    role: Literal["client", "server"],
    nonce_server: bytes,
    nonce_client: bytes,
) -> bool:
    if len(nonce_server) != NONCE_BYTES or len(nonce_client) != NONCE_BYTES:
        return False
    return hmac.compare_digest(mac, proof(secret, role, nonce_server, nonce_client))


def check_secret(secret: bytes) -> None:
    """Raises `ValueError` for a secret that could be guessed."""
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the step channel's secret needs at least {MIN_SECRET_BYTES} bytes")
