"""Measured costs are found again where all is as it was, and nowhere else."""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path

import msgspec
import pytest

from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.cost_store import CostStore, Fingerprint

HERE = Fingerprint(
    part="target",
    model="m",
    dtype="float32",
    device="d",
    threads=2,
    stairs=(8,),
    grid="g",
    torch="2",
    engine="e",
)
DATED = {"fingerprint": HERE, "measured_on": "2026-11-23"}
TABLE = CostTable((1,), (64,), ((Curve((1.0, 8.0), (2.0, 3.0)),),))


@pytest.fixture
def store(tmp_path: Path) -> CostStore:
    return CostStore(tmp_path / "costs", shipped=tmp_path / "shipped")


def never() -> CostTable:
    pytest.fail("it was measured before")


def holds(_: CostTable) -> bool:
    return True


def test_it_is_measured_once(store: CostStore) -> None:
    assert store.get(HERE, CostTable, lambda: TABLE, holds) == TABLE
    assert store.get(HERE, CostTable, never, holds) == TABLE


def test_what_does_not_hold_any_more_is_measured_again(
    store: CostStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(HERE, CostTable((1,), (1,), ((Curve((1.0,), (9.0,)),),)))
    with caplog.at_level(logging.WARNING):
        assert store.get(HERE, CostTable, lambda: TABLE, lambda found: found == TABLE) == TABLE
    assert len(caplog.records) == 1
    assert store.get(HERE, CostTable, never, lambda found: found == TABLE) == TABLE


@pytest.mark.parametrize("field", [f for f in Fingerprint.__struct_fields__ if f != "part"])
def test_whatever_is_different_is_measured_again(store: CostStore, field: str) -> None:
    store.save(HERE, TABLE)
    value = {"threads": 3, "stairs": (4, 8)}.get(field, "other")
    assert store.load(msgspec.structs.replace(HERE, **{field: value}), CostTable) is None


def test_renewing_measures_and_replaces(store: CostStore, tmp_path: Path) -> None:
    store.save(HERE, CostTable((1,), (1,), ((Curve((1.0,), (9.0,)),),)))
    renewing = CostStore(store.folder, store.shipped, renews=True)
    assert renewing.get(HERE, CostTable, lambda: TABLE, holds) == TABLE
    assert store.load(HERE, CostTable) == TABLE


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"fingerprint": {}, "costs": {}}',
        msgspec.json.encode({**DATED, "costs": {"x": [2.0, 1.0], "y": [1.0, 1.0]}}),
        msgspec.json.encode({**DATED, "costs": TABLE, "more": 1}),
        msgspec.json.encode({"fingerprint": HERE, "costs": TABLE}),
    ],
)
def test_a_broken_file_is_told_and_measured_again(
    store: CostStore, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.folder.mkdir()
    (store.folder / HERE.file_name).write_bytes(text)
    with caplog.at_level(logging.WARNING):
        assert store.get(HERE, CostTable, lambda: TABLE, holds) == TABLE
    assert len(caplog.records) == 1
    assert store.get(HERE, CostTable, never, holds) == TABLE


def test_a_file_under_another_name_than_its_fingerprint_counts_for_nothing(
    store: CostStore,
) -> None:
    store.save(HERE, TABLE)
    elsewhere = msgspec.structs.replace(HERE, device="another")
    (store.folder / HERE.file_name).rename(store.folder / elsewhere.file_name)
    assert store.load(elsewhere, CostTable) is None


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = CostStore(tmp_path / "file" / "costs", shipped=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert store.get(HERE, CostTable, lambda: TABLE, holds) == TABLE
    assert len(caplog.records) == 1


def test_a_shipped_table_stands_in_for_another_version_but_not_another_device(
    store: CostStore,
) -> None:
    CostStore(store.shipped).save(HERE, TABLE)
    newer = msgspec.structs.replace(HERE, torch="3", engine="f", grid="h")
    assert store.load(newer, CostTable) == TABLE
    for field, value in (("device", "another"), ("model", "n"), ("stairs", (8, 16))):
        assert store.load(msgspec.structs.replace(newer, **{field: value}), CostTable) is None


def test_a_file_tells_when_it_was_measured(store: CostStore) -> None:
    before = datetime.datetime.now(datetime.UTC).date()
    store.save(HERE, TABLE)
    file = json.loads((store.folder / HERE.file_name).read_text())
    told = datetime.date.fromisoformat(file["measured_on"])
    assert before <= told <= datetime.datetime.now(datetime.UTC).date()
    assert file["fingerprint"]["torch"] == HERE.torch


def test_nothing_but_the_file_is_left_behind(store: CostStore) -> None:
    store.save(HERE, TABLE)
    assert [path.name for path in store.folder.iterdir()] == [HERE.file_name]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SMART_SERVE_COSTS": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/smart-serve/costs"),
        ({"HOME": "/c"}, "/c/.cache/smart-serve/costs"),
    ],
)
def test_the_folder_is_the_named_one_or_in_the_users_cache(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SMART_SERVE_COSTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(CostStore.of_user().folder) == expected
