"""Names of models: "bundled", a folder on disk, or "org/name" on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from smart_serve.errors import ConfigError

_BUNDLED = Path(__file__).resolve().parent.parent / "bundled"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SMALL_FILES = ("*.json", "*.jinja")
"""Configurations, tokenizer, template, index of the shards."""
_WEIGHTS = ("*.safetensors",)
_DRAFTER_WEIGHTS = (*_WEIGHTS, "pytorch_model.bin")
"""Some drafters are published in this form alone; see `drafters.pickled`."""


def resolve_model(name: str | Path, *, weights: bool = True) -> Path:
    """Folder of a target's checkpoint; without `weights` a hub model's small files are enough.

    What the local cache of the hub lacks is downloaded, with progress bars. Raises `ConfigError`.
    """
    return _resolve(name, _BUNDLED / "target", _WEIGHTS if weights else ())


def resolve_drafter(name: str | Path) -> Path:
    """Folder of a drafter's checkpoint, as `resolve_model`. Raises `ConfigError`."""
    return _resolve(name, _BUNDLED / "drafter", _DRAFTER_WEIGHTS)


def _resolve(name: str | Path, bundled: Path, weights: tuple[str, ...]) -> Path:
    folder = bundled if name == "bundled" else Path(name).expanduser()
    if not folder.is_dir() and _HUB_NAME.fullmatch(str(name)):
        folder = _from_hub(str(name), weights)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"'{name}' is not a model folder: it has no config.json")
    return folder


def _from_hub(name: str, weights: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and folders do not need it

    try:
        return Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, *weights]))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{name}' is no folder here, and the hub did not give a model of this name "
            f"({type(error).__name__}); offline, only what its local cache holds can be used"
        ) from error
