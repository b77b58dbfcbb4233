from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from deploy.through_ray import ThroughRay, widened
from smart_serve.bench.simulator.shapes import SHAPES, ModelShape
from smart_serve.checkpoint import read_json

ROOT = Path(__file__).parents[2]


def test_an_application_is_widened_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ModelShape("small", 7, 512, 4, 4, 700, 700, context=512)
    monkeypatch.setitem(SHAPES, "small", shape)
    with widened({"policy": "eagle2"}, "small") as app:
        target, drafter = Path(app.pop("model")), Path(app.pop("drafter"))
        assert app == {"policy": "eagle2"}
        assert read_json(target / "config.json")["text_config"]["num_hidden_layers"] == 7
        assert read_json(drafter / "config.json")["hidden_size"] == 512
    assert not target.exists()
    with widened({"policy": "eagle2"}, None) as app:
        assert app == {"policy": "eagle2"}


@pytest.mark.serve
@pytest.mark.slow
def test_streams_through_ray_are_measured_against_the_engine_alone(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["--clients", "2,4", "--requests", "8", "--rounds", "1", "--settings", "default"]
    options += ["--app", '{"policy": "eagle2", "ingress_replicas": 1}']
    words = [sys.executable, "-m", "deploy.through_ray", *options, "--json", str(file)]
    run = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-3000:]
    two, figures = msgspec.json.decode(file.read_bytes(), type=ThroughRay).settings
    assert two.clients == 2
    assert (figures.setting, figures.clients) == ("default", 4)
    assert figures.tokens_per_s > 0
    # One round: the share is that of the two rates.
    assert figures.share.median == pytest.approx(figures.tokens_per_s / figures.alone_tokens_per_s)
    used = {name for name, ms in figures.cpu_ms_per_token.items() if ms > 0}
    assert {"target-default", "drafter", "ingress", "proxy", "clients"} <= used
