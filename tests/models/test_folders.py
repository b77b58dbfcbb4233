"""Names of models, without a network: folders, and the hub's local cache."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from smart_serve.errors import ConfigError
from smart_serve.models.folders import resolve_drafter, resolve_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put(cache: Path, name: str, *files: str) -> Path:
    """As a download leaves it."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


def test_a_cached_hub_model_is_found_offline(cache: Path) -> None:
    snapshot = put(cache, "acme/tiny-7B.v1", "config.json", "model.safetensors")
    assert resolve_model("acme/tiny-7B.v1") == snapshot
    assert resolve_drafter("acme/tiny-7B.v1") == snapshot


def test_a_folder_goes_before_the_hub(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, "acme/tiny", "config.json")
    folder = tmp_path / "acme" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("acme/tiny").resolve() == folder


@pytest.mark.parametrize("name", ["acme/absent", "acme/../../etc", "./acme/absent", "absent"])
def test_what_is_nowhere_is_a_config_error(cache: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"acme|absent"):
        resolve_model(name)


def test_only_the_files_that_are_needed_are_asked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = put(cache, "acme/tiny", "config.json")
    asked: list[list[str]] = []

    def recorded(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", recorded)
    resolve_model("acme/tiny", weights=False)
    resolve_model("acme/tiny")
    resolve_drafter("acme/tiny")
    small, model, drafter = map(set, asked)
    assert model - small == {"*.safetensors"}
    assert drafter - model == {"pytorch_model.bin"}
    assert not any(pattern.endswith((".py", "*", ".bin")) for pattern in model)
