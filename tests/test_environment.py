"""The distribution on the package index that is called like our own `kernels` package."""

from __future__ import annotations

from importlib import metadata

import pytest

from smart_serve.environment import check_environment
from smart_serve.errors import ConfigError
from smart_serve.llm import LLM


def install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make importlib.metadata report a distribution of this name."""
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda asked: "0.9.0" if asked == name else real(asked)
    )


def test_a_clean_environment_passes() -> None:
    check_environment()


def test_an_unrelated_distribution_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "kernels-extra")
    check_environment()


def test_start_up_stops_at_the_foreign_kernels_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, "kernels")
    with pytest.raises(ConfigError, match=r"'kernels' 0\.9\.0 hides") as caught:
        LLM()
    assert "\n" not in caught.value.message
