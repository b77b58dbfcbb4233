"""Names of models: "bundled", or a folder on disk."""

from __future__ import annotations

from pathlib import Path

from smart_serve.errors import ConfigError

_BUNDLED = Path(__file__).resolve().parent.parent / "bundled"


def resolve_model(name: str | Path) -> Path:
    """Folder of a target's checkpoint. Raises `ConfigError` when there is none."""
    return _resolve(name, _BUNDLED / "target")


def resolve_drafter(name: str | Path) -> Path:
    """Folder of a drafter's checkpoint. Raises `ConfigError` when there is none."""
    return _resolve(name, _BUNDLED / "drafter")


def _resolve(name: str | Path, bundled: Path) -> Path:
    folder = bundled if name == "bundled" else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"'{name}' is not a model folder: it has no config.json")
    return folder
