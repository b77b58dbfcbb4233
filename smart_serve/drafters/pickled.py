"""Drafters published as `pytorch_model.bin`: converted once, without running what is pickled."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from smart_serve.errors import ConfigError

_LOG = logging.getLogger(__name__)
_PICKLED = "pytorch_model.bin"
_CONVERTED = "model.safetensors"


def with_safetensors(folder: Path) -> Path:
    """A folder with the same config and safetensors weights: `folder` itself where it has them.

    Else `pytorch_model.bin` is converted beside itself, or into the user's cache folder where
    `folder` is read-only. Raises `ConfigError` for a file that is more than a table of tensors.
    """
    source = folder / _PICKLED
    has_safetensors = any((folder / f"{_CONVERTED}{end}").is_file() for end in ("", ".index.json"))
    if has_safetensors or not source.is_file():
        return folder
    if os.access(folder, os.W_OK):
        place = folder
    else:
        place = _cache_folder(source)
        if (place / _CONVERTED).is_file():
            return place
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "config.json", place / "config.json")
    _convert(source, place / _CONVERTED)
    return place


def _convert(source: Path, target: Path) -> None:
    _LOG.info("converting %s to %s", source, target)
    tensors = _read(source)
    # Two processes may convert at once: each writes a file of its own, the last one wins.
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, unfinished, {"format": "pt"})
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(source: Path) -> dict[str, torch.Tensor]:
    try:
        # weights_only: the unpickler builds tensors and calls nothing else.
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # as many kinds as there are broken files
        raise ConfigError(f"{source} is not a plain table of tensors") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise ConfigError(f"{source} is not a plain table of tensors")
    # Clones, for safetensors wants each tensor to own its memory.
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def _cache_folder(source: Path) -> Path:
    """Of this very file: another size or date is another folder."""
    seen = source.stat()
    key = f"{source.resolve()}:{seen.st_size}:{seen.st_mtime_ns}"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "smart-serve" / "drafters" / hashlib.sha256(key.encode()).hexdigest()[:16]
