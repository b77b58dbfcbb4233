"""API keys: where they come from, whose a key is, and how much its holder may ask for.

A key is long and random, so one round of SHA-256 is enough to keep it. Only hashes leave the
process that reads the keys, which is the one that builds the application.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from smart_serve.errors import ClientError, ConfigError

KEYS_VARIABLE = "SMART_SERVE_API_KEYS"
"""name:key,name:key ...; such keys may do everything. A file tells keys apart."""
MIN_KEY_CHARS = 16
"""What can be guessed must not be kept under a fast hash."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key, as the keys file (a JSON list of such objects) holds it."""

    name: str
    """Shown in the log."""
    sha256: str
    """Of the key, in hex: `printf %s "$KEY" | sha256sum`."""
    requests_per_minute: int = 600
    """All that begin within a minute; more are answered 429 with `Retry-After`."""
    max_concurrent: int = 64
    """Requests under way, streams included."""
    operator: bool = False
    """May also see the load of the cluster."""

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.sha256):
            raise ConfigError(f"API key '{self.name}': sha256 is not 64 lower-case hex digits")
        if self.requests_per_minute < 1 or self.max_concurrent < 1:
            raise ConfigError(f"API key '{self.name}': its limits must be at least 1")


class KeyOverLimit(ClientError):
    """The holder of a key asks for more than it may (429)."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def load_keys(file: str | None) -> tuple[ApiKey, ...]:
    """Keys of `file` and of the environment; empty: none are wanted, every route is open.

    Raises `ConfigError`, also for a file or a variable that is there but holds no key.
    """
    variable = os.environ.get(KEYS_VARIABLE)
    keys: tuple[ApiKey, ...] = ()
    if file is not None:
        keys += _read(Path(file))
    if variable is not None:
        keys += _from_variable(variable)
    if not keys and (file is not None or variable is not None):
        raise ConfigError("API keys are asked for, but there are none")
    if len({key.name for key in keys}) < len(keys):
        raise ConfigError("two API keys have the same name")
    return keys


def _read(path: Path) -> tuple[ApiKey, ...]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[ApiKey, ...])
    except OSError as error:
        raise ConfigError(f"the API keys file {path} cannot be read") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"the API keys file {path} is wrong: {error}") from error


def _from_variable(text: str) -> tuple[ApiKey, ...]:
    keys = []
    for entry in filter(None, map(str.strip, text.split(","))):
        name, _, secret = entry.partition(":")
        if len(secret) < MIN_KEY_CHARS:
            # The entry itself may be the secret: it is not repeated.
            message = f"{KEYS_VARIABLE} must hold name:key with {MIN_KEY_CHARS} characters or more"
            raise ConfigError(message)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        keys.append(ApiKey(name=name, sha256=digest, operator=True))
    return tuple(keys)


class KeyHolder:
    """What one key has used of its limits at this ingress replica. A bucket of requests that is
    full at first and refills evenly over a minute."""

    def __init__(self, key: ApiKey, replicas: int, clock: Callable[[], float]) -> None:
        """`replicas`: of the ingress; each grants its share."""
        self.key = key
        self._clock = clock
        self._capacity = math.ceil(key.requests_per_minute / replicas)
        self._max_concurrent = math.ceil(key.max_concurrent / replicas)
        self._left = float(self._capacity)
        self._seen_s = clock()
        self._running = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Held for as long as a request lasts. Raises `KeyOverLimit`."""
        if self._running >= self._max_concurrent:
            raise KeyOverLimit("this key has too many requests under way", retry_after_s=1)
        now_s, per_s = self._clock(), self._capacity / 60
        self._left = min(self._capacity, self._left + (now_s - self._seen_s) * per_s)
        self._seen_s = now_s
        if self._left < 1:
            wait_s = math.ceil((1 - self._left) / per_s)
            raise KeyOverLimit("this key has used its requests of the last minute", wait_s)
        self._left -= 1
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


class KeyRing:
    """All keys of one ingress replica. Used in its event loop alone."""

    def __init__(
        self,
        keys: Sequence[ApiKey],
        replicas: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._holders = [KeyHolder(key, replicas, clock) for key in keys]

    @property
    def is_open(self) -> bool:
        """No keys: everybody may call every route."""
        return not self._holders

    def find(self, secret: bytes) -> KeyHolder | None:
        """The holder of a key; how long it takes does not tell how much of a guess is right."""
        digest = hashlib.sha256(secret).hexdigest()
        found = None
        for holder in self._holders:
            if hmac.compare_digest(digest, holder.key.sha256):
                found = holder
        return found
