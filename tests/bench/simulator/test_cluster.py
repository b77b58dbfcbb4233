"""Routers over a simulated fleet of mixed devices."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import msgspec
import pytest

from smart_serve.bench.simulate_cluster import mixed_fleet
from smart_serve.bench.simulator import cluster
from smart_serve.bench.simulator.cluster import ClusterFigures, Fleet, run_cluster
from smart_serve.bench.simulator.server import Job, Server
from smart_serve.cli import main
from smart_serve.messages import LoadReport

LOADS = (0.3, 0.6, 0.8, 0.95)


@functools.cache
def figures(router: str, load: float) -> ClusterFigures:
    return run_cluster(router, mixed_fleet(20), load, 4000)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("rival", ["round-robin", "least-loaded", "two-choices"])
def test_ours_is_not_worse_on_a_mixed_fleet(rival: str, load: float) -> None:
    ours, theirs = figures("predicted", load), figures(rival, load)
    assert ours.tokens_per_s >= theirs.tokens_per_s
    assert ours.price_per_million <= theirs.price_per_million
    assert ours.p99_ms <= theirs.p99_ms
    assert ours.p50_ms <= 1.05 * theirs.p50_ms
    assert ours.cached_share >= theirs.cached_share


def test_control_without_what_the_reports_tell_of_speed_ours_is_worse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, seeing = Server.report, figures("predicted", 0.8)

    def silent(server: Server, pool: str) -> LoadReport:
        report = told(server, pool)
        same = {"plain_steps": ((1, 9.0), (64, 30.0)), "token_ms": 0.0, "prompt_token_ms": 0.1}
        return msgspec.structs.replace(report, **same)

    monkeypatch.setattr(Server, "report", silent)
    blind = run_cluster("predicted", mixed_fleet(20), 0.8, 4000)
    assert blind.tokens_per_s < 0.9 * seeing.tokens_per_s
    assert blind.p99_ms > 2.0 * seeing.p99_ms


def test_control_on_equal_devices_little_is_left_to_gain() -> None:
    (kind, _), *_ = mixed_fleet(20).kinds
    fleet = Fleet(((kind, 8),))
    ours, theirs = (run_cluster(name, fleet, 0.8, 3000) for name in ("predicted", "least-loaded"))
    assert ours.tokens_per_s == pytest.approx(theirs.tokens_per_s, rel=0.03)


def test_every_request_ends_and_every_token_counts() -> None:
    done = figures("predicted", 0.6)
    again = run_cluster("predicted", mixed_fleet(20), 0.6, 4000)
    assert done == again
    servers = mixed_fleet(3).servers()
    run = cluster._Run(cluster.round_robin(servers, None))  # type: ignore[arg-type]  # draws nothing
    jobs = [Job(n, 5.0 * n, n, 576, 64, 256, 10 + n % 90) for n in range(500)]
    for job in jobs:
        run.until(job.arrival_ms)
        run.send(job)
    run.until(float("inf"))
    assert len(run.latencies_ms) == 500
    assert run.tokens == sum(job.tokens for job in jobs)
    assert all(server.load == 0 for server in servers)


def test_a_lone_request_takes_its_prompt_and_its_tokens() -> None:
    server = mixed_fleet(1).servers()[0]
    server.take(Job(0, 0.0, 7, 576, 64, 256, 50), 0.0)
    kind = server.kind
    alone_ms = 640 * kind.prompt_token_ms + 50 * kind.token_ms[0]
    end_ms = server.next_end_ms()
    assert end_ms == pytest.approx(alone_ms)
    server.end_one(alone_ms)
    # The picture is in the cache now.
    server.take(Job(1, alone_ms, 7, 576, 64, 256, 50), alone_ms)
    assert server.next_end_ms() == pytest.approx(2 * alone_ms - 576 * kind.prompt_token_ms)


def test_the_command_marks_every_figure_as_simulated_or_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    words = ["--replicas", "3", "--load", "0.5", "--requests", "20", "--cost", "1"]
    assert main(["simulate-cluster", *words, "--json", str(file)]) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("SIMULATED")
    assert len(lines) == 4
    assert all(line.startswith("simulated") for line in lines)
    assert last.startswith("measured")
    assert [row.get("simulated") for row in json.loads(file.read_text())] == [True] * 4 + [None]


@pytest.mark.parametrize(
    "words", [["--replicas", "0"], ["--load", "x"], ["--routers", "best"], ["--requests", "-1"]]
)
def test_what_cannot_be_simulated_is_told_in_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["simulate-cluster", *words])
    assert capsys.readouterr().err.count("\n") == 1
