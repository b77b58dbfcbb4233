"""Keys, their limits, and where they are read from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from deploy.keys import KEYS_VARIABLE, ApiKey, KeyHolder, KeyOverLimit, KeyRing, load_keys
from smart_serve.errors import ConfigError

SECRET = "sk-0123456789abcdef"


def key(secret: str = SECRET, **fields: object) -> ApiKey:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return ApiKey(**{"name": "team", "sha256": digest, **fields})  # type: ignore[arg-type]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def ask(holder: KeyHolder, times: int = 1) -> None:
    for _ in range(times):
        with holder.request():
            pass


def test_only_the_whole_key_is_found() -> None:
    ring = KeyRing([key("other" * 5, name="other"), key()])
    found = ring.find(SECRET.encode())
    assert found is not None
    assert found.key.name == "team"
    for wrong in ("", SECRET[:-1], SECRET + " ", SECRET.upper(), key().sha256, "\xff"):
        assert ring.find(wrong.encode("latin-1")) is None
    assert not ring.is_open
    assert KeyRing(()).is_open


def test_a_minute_holds_its_requests_and_refills() -> None:
    clock = Clock()
    holder = KeyHolder(key(requests_per_minute=6), 1, clock)
    ask(holder, 6)
    with pytest.raises(KeyOverLimit) as caught:
        ask(holder)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 10)
    clock.now_s += 9.9
    with pytest.raises(KeyOverLimit):
        ask(holder)
    clock.now_s += 0.2
    ask(holder)
    clock.now_s += 3600
    ask(holder, 6)
    with pytest.raises(KeyOverLimit):
        ask(holder)


def test_requests_under_way_are_limited_until_they_end() -> None:
    holder = KeyHolder(key(max_concurrent=2), 1, Clock())
    with holder.request(), holder.request(), pytest.raises(KeyOverLimit, match="under way"):
        ask(holder)
    ask(holder)
    with pytest.raises(ZeroDivisionError), holder.request():
        raise ZeroDivisionError
    with holder.request():
        ask(holder)


def test_each_ingress_replica_grants_its_share() -> None:
    holder = KeyHolder(key(requests_per_minute=10), 4, Clock())
    ask(holder, 3)
    with pytest.raises(KeyOverLimit):
        ask(holder)


def test_keys_come_from_a_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert load_keys(None) == ()
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([{"name": "a", "sha256": key().sha256, "max_concurrent": 3}]))
    monkeypatch.setenv(KEYS_VARIABLE, f"b:{SECRET}1, c:{SECRET}:2")
    keys = load_keys(str(file))
    assert [(one.name, one.operator) for one in keys] == [("a", False), ("b", True), ("c", True)]
    assert keys[0] == key(name="a", max_concurrent=3)
    assert KeyRing(keys).find(f"{SECRET}:2".encode()) is not None


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "wrong"),
        ("[]", "none"),
        ('[{"name": "a", "sha256": "abc"}]', "64"),
        ('[{"name": "a", "key": "abc"}]', "wrong"),
        (json.dumps([{"name": "a", "sha256": "0" * 64}] * 2), "same name"),
        (json.dumps([{"name": "a", "sha256": "0" * 64, "max_concurrent": 0}]), "at least 1"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_file_stops_the_start(
    content: str | None, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=word):
        load_keys(str(file))


@pytest.mark.parametrize("text", ["", " , ", "shortsecret", "a:short", SECRET])
def test_a_wrong_variable_stops_the_start_and_is_not_repeated(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, text)
    with pytest.raises(ConfigError) as caught:
        load_keys(None)
    assert not text.strip(" ,") or text not in caught.value.message
