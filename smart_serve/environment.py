"""What the installed environment must not contain; checked before anything is loaded."""

from __future__ import annotations

from importlib import metadata

from smart_serve.errors import ConfigError

FOREIGN_KERNELS = "kernels"
"""Hugging Face's distribution of this name installs a top-level package of the same name as ours;
transformers imports it when it is there, and one of the two hides the other."""


def check_environment() -> None:
    """Raises `ConfigError` when an installed distribution takes the name of one of our packages."""
    try:
        found = metadata.version(FOREIGN_KERNELS)
    except metadata.PackageNotFoundError:
        return
    raise ConfigError(
        f"the installed distribution '{FOREIGN_KERNELS}' {found} hides smart-serve's own package "
        f"of that name: run `pip uninstall {FOREIGN_KERNELS}` and start again"
    )
