"""Pickled checkpoints become tensors, or nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smart_serve.drafters import pickled
from smart_serve.drafters.pickled import with_safetensors
from smart_serve.errors import ConfigError

TENSORS = {"a": torch.arange(6.0).view(2, 3).half(), "d2t": torch.tensor([3, 1])}


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def folder_with(tmp_path: Path, content: object) -> Path:
    folder = tmp_path / "drafter"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save(content, folder / "pytorch_model.bin")
    return folder


def test_tensors_keep_names_values_and_dtypes(tmp_path: Path) -> None:
    shared = {**TENSORS, "view": TENSORS["a"].T}
    folder = with_safetensors(folder_with(tmp_path, shared))
    converted = load_file(folder / "model.safetensors")
    assert converted.keys() == shared.keys()
    for name, tensor in shared.items():
        assert converted[name].dtype == tensor.dtype
        assert torch.equal(converted[name], tensor)
    assert not list(folder.glob("*.tmp"))


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, Touch(tmp_path / "ran"))
    (folder / "model.safetensors.index.json").write_text("{}")
    assert with_safetensors(folder) == folder


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    ran = tmp_path / "ran"
    folder = folder_with(tmp_path, {"a": torch.zeros(1), "b": Touch(ran)})
    if legacy:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(ran), protocol=2))
    with pytest.raises(ConfigError, match="not a plain table of tensors"):
        with_safetensors(folder)
    assert not ran.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_the_same_pickle_would_have_run(tmp_path: Path) -> None:
    """The control of the test above."""
    ran = tmp_path / "ran"
    folder = folder_with(tmp_path, {"b": Touch(ran)})
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert ran.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, {1: torch.zeros(1)}])
def test_more_than_a_table_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ConfigError, match="not a plain table of tensors"):
        with_safetensors(folder_with(tmp_path, content))


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, TENSORS)
    whole = (folder / "pytorch_model.bin").read_bytes()
    for broken in (b"", b"PK", whole[: len(whole) // 2]):
        (folder / "pytorch_model.bin").write_bytes(broken)
        with pytest.raises(ConfigError, match="not a plain table of tensors"):
            with_safetensors(folder)


def test_beside_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(tmp_path, TENSORS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Whoever runs the tests may be allowed to write anywhere.
    monkeypatch.setattr(pickled.os, "access", lambda path, mode: path != folder)
    place = with_safetensors(folder)
    assert place.is_relative_to(tmp_path / "cache")
    assert (place / "config.json").read_text() == "{}"
    assert torch.equal(load_file(place / "model.safetensors")["a"], TENSORS["a"])
    made = (place / "model.safetensors").stat().st_mtime_ns
    assert with_safetensors(folder) == place
    assert (place / "model.safetensors").stat().st_mtime_ns == made
    # Another file of the same name is converted anew.
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin")
    os.utime(folder / "pytorch_model.bin", ns=(made, made + 1))
    assert with_safetensors(folder) != place
