from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from served_app import ServedApp, free_port

from smart_serve.cli import main


@pytest.mark.serve
def test_ask_streams_an_answer(
    app: ServedApp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (50, 40), "blue").save(picture)
    text = "Describe the picture."
    arguments = ["ask", "--url", app.url, "--image", str(picture), "--max-tokens", "8", text]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    assert "tokens per step" in err
    assert main([*arguments, "--policy", "magic"]) == 1
    assert "policy must be one of" in capsys.readouterr().err


@pytest.mark.serve
def test_status_shows_the_replica(app: ServedApp, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", f"{app.url}/"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "pool"
    assert row.split()[0] == "default"


@pytest.mark.serve
def test_answers_and_load_are_told_as_json(
    app: ServedApp, capsys: pytest.CaptureFixture[str]
) -> None:
    question = ["ask", "--url", app.url, "--json", "--max-tokens", "8", "How many circles?"]
    assert main(question) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"]
    assert told["usage"]["completion_tokens"] > 0
    assert main(["status", "--url", app.url, "--json"]) == 0
    (replica,) = json.loads(capsys.readouterr().out)["replicas"]
    assert replica["report"]["pool"] == "default"


@pytest.mark.serve
def test_bench_measures_a_running_server(app: ServedApp, tmp_path: Path) -> None:
    work, figures = tmp_path / "work.jsonl", tmp_path / "figures.json"
    work.write_text('{"prompt": "How many shapes are there?", "max_tokens": 8}\n')
    words = ["--workload", str(work), "--policies", "off,eagle2:4x2", "--json", str(figures)]
    assert main(["bench", "--url", app.url, *words, "--batch", "2", "--rounds", "1"]) == 0
    off, tree = json.loads(figures.read_text())["rows"]
    assert off["nodes_per_step"] == 0.0
    assert tree["tokens_per_step"] > off["tokens_per_step"]
    for row in (off, tree):
        assert row["tokens_per_s"] > 0
        assert 0 < row["first_token_ms"]["p50"] <= row["first_token_ms"]["p99"]


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    for arguments, word in (
        (["status", "--url", nowhere], "no server answers"),
        (["status", "--url", "file:///etc/passwd"], "not an http"),
        (["ask", "--url", nowhere, "--model", "m", "--image", "a.txt", "Hi"], "a.txt"),
        (["ask", "--url", nowhere, "--model", "m", "--image", "no.png", "Hi"], "cannot be read"),
    ):
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert word in err
        assert err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["nonsense"])


COMPLETED = {
    "smart-serve ch": "check",
    "smart-serve check --loc": "--local",
    "smart-serve ask --max": "--max-tokens",
    "smart-serve bench --dtype bf": "bfloat16",
    "smart-serve completion z": "zsh",
    "smart-serve check nothing-like-this": "",
}


def test_bash_completes_commands_options_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for line, completed in COMPLETED.items():
        words = line.split()
        press = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _smart_serve"
        run = ["bash", "-c", f'{script}\n{press}; echo "${{COMPREPLY[@]}}"']
        assert subprocess.check_output(run, text=True).strip().startswith(completed), line
        assert (completed != "") or subprocess.check_output(run, text=True).strip() == ""


def test_help_tells_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for name in ("ask", "status", "check", "bench", "profile", "simulate", "completion"):
        assert f"\n    {name} " in out
        assert max(map(len, out.splitlines())) < 100
