"""`smart-serve bench` and `profile` as they are typed, with the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smart_serve.cli import main


def test_bench_measures_and_writes_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, figures, page = (tmp_path / name for name in ("work.jsonl", "out/f.json", "out/r.html"))
    work.write_text('{"prompt": "How many circles are there?", "max_tokens": 12}\n')
    words = ["--policies", "off,smart,eagle2:4x2", "--batch", "2", "--rounds", "2"]
    words += ["--workload", str(work), "--json", str(figures), "--report", str(page)]
    assert main(["bench", *words]) == 0
    assert capsys.readouterr().out.count(" tokens/s ") == 3
    report = json.loads(figures.read_text())
    assert set(report) >= {"command", "machine", "rows", "calibration", "costs"}
    off, _, tree = report["rows"]
    assert [row["policy"] for row in report["rows"]] == ["off", "smart", "eagle2:4x2"]
    assert off["speedup"]["median"] == 1.0
    assert off["nodes_per_step"] == 0.0
    assert tree["nodes_per_step"] == pytest.approx(4.0, abs=1.0)
    assert tree["tokens_per_step"] > off["tokens_per_step"]
    for row in report["rows"]:
        assert sum(row["time_shares"].values()) == pytest.approx(1.0)
        assert row["time_shares"]["verify"] > 0.0
        assert row["tokens_per_s"] > 0
        assert row["between_tokens_ms"]["p50"] <= row["between_tokens_ms"]["p99"]
        assert row["prediction"]["median"] > 0
        assert row["of_limit"]["step"] > 0
    assert tree["time_shares"]["draft"] > off["time_shares"]["draft"] == 0.0
    assert tree["of_limit"]["draft"] > 0
    assert "draft" not in off["of_limit"] or off["of_limit"]["draft"] is None
    assert min(report["roof"].values()) > 0
    assert "<svg" in page.read_text()


def test_rules_compete_on_drawn_trees(tmp_path: Path) -> None:
    work, figures = tmp_path / "work.jsonl", tmp_path / "f.json"
    work.write_text('{"prompt": "How many circles are there?", "max_tokens": 8}\n')
    words = ["--policies", "off,delayed:2,0,2", "--verification", "match,traversal"]
    words += ["--temperature", "1", "--batch", "2", "--rounds", "1"]
    assert main(["bench", *words, "--workload", str(work), "--json", str(figures)]) == 0
    rows = json.loads(figures.read_text())["rows"]
    drawn = ["delayed:2,0,2", "delayed:2,0,2+traversal"]
    assert [row["policy"] for row in rows] == ["off", *drawn]
    assert all(row["tokens_per_step"] > 1.5 for row in rows[1:])


def test_profile_keeps_tables_that_it_also_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--max-running", "1", "--kv-tokens", "1024", "--keep", str(tmp_path / "kept")]
    words += ["--json", str(tmp_path / "t.json"), "--report", str(tmp_path / "t.html")]
    assert main(["profile", *words]) == 0
    parts = {path.name.split("-")[0] for path in (tmp_path / "kept").iterdir()}
    assert parts == {"target", "drafter"}
    told = capsys.readouterr().out
    assert "context    64" in told
    assert "drafting pass" in told
    tables = json.loads((tmp_path / "t.json").read_text())
    assert tables["target"]["contexts"] == [64, 384]
    assert "<svg" in (tmp_path / "t.html").read_text()
