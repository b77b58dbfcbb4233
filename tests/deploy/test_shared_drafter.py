"""Targets that decode at the same time with one drafter say what each says with its own."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.server import DrafterServer
from smart_serve.config import EngineConfig
from smart_serve.drafters.load import load_drafter
from smart_serve.drafters.protocol import DraftBatch, Outcome, Proposal, SharedDrafter
from smart_serve.llm import LLM, Completion
from smart_serve.messages import SamplingParams
from smart_serve.models.folders import resolve_model

SECRET = b"a secret that only this test has"
TARGET = resolve_model("bundled")
SAMPLED = {"temperature": 1.0, "seed": 7}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("smart", {}),
    ("eagle2", SAMPLED),
    ("smart-drawn", SAMPLED),
    ("delayed:2,1,2", {"verification": "specinfer", **SAMPLED}),
]
NUM_TARGETS = 3
"""Of two, one verifies while the other is drafted for, and they need not ever meet."""
QUESTIONS = ("What is in the picture?", "How many shapes are there?", "Count from one to ten.")


def prompts_of(target: int) -> list[dict[str, Any]]:
    """Three of each target's own."""
    picture = [str(TARGET.parent / "example.png")]
    return [
        {"prompt": f"{question} {target}", "images": picture if i < 2 else []}
        for i, question in enumerate(QUESTIONS)
    ]


def answers(llm: LLM, target: int, policy: str, options: dict[str, Any]) -> list[Completion]:
    sampling = SamplingParams(
        **{"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, "policy": policy, **options}
    )
    return llm.generate(prompts_of(target), sampling)


@pytest.fixture(scope="module")
def targets() -> list[LLM]:
    return [LLM(drafter=None, max_running=4, kv_tokens=4096) for _ in range(NUM_TARGETS)]


class Crowd:
    """Keeps the first draft waiting until all targets have asked."""

    def __init__(self, drafter: SharedDrafter, monkeypatch: pytest.MonkeyPatch) -> None:
        self._asked = threading.Semaphore(0)
        self._is_first = True
        draft = drafter.propose_together

        def wait(batches: Sequence[DraftBatch]) -> Iterator[tuple[int, Outcome]]:
            for _ in range(NUM_TARGETS if self._is_first else 0):
                assert self._asked.acquire(timeout=10)
            self._is_first = False
            return draft(batches)

        monkeypatch.setattr(drafter, "propose_together", wait)

    def join(self, remote: RemoteDrafter, monkeypatch: pytest.MonkeyPatch) -> None:
        send = remote.ask

        def ask(batch: DraftBatch) -> Callable[[], Proposal]:
            answer = send(batch)
            self._asked.release()
            return answer

        monkeypatch.setattr(remote, "ask", ask)


@pytest.fixture(scope="module")
def drafter() -> SharedDrafter:
    return load_drafter("bundled", TARGET, EngineConfig(kv_tokens=8192))


@pytest.mark.parametrize(("policy", "options"), CASES, ids=[policy for policy, _ in CASES])
def test_tokens_are_those_of_a_drafter_of_its_own(
    targets: list[LLM],
    drafter: SharedDrafter,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    options: dict[str, Any],
) -> None:
    expected = []
    for number, llm in enumerate(targets):
        llm.engine.set_drafter(drafter)
        expected.append([one.token_ids for one in answers(llm, number, policy, options)])
        llm.engine.set_drafter(None)
    crowd = Crowd(drafter, monkeypatch)
    with tempfile.TemporaryDirectory(prefix="ss-") as folder:
        server = DrafterServer(drafter, SECRET, unix_path=Path(folder, "d"))
        server.start()
        remotes = [RemoteDrafter(SECRET, unix_path=Path(folder, "d")) for _ in targets]
        for llm, remote in zip(targets, remotes, strict=True):
            crowd.join(remote, monkeypatch)
            llm.engine.set_drafter(remote)
        with ThreadPoolExecutor(NUM_TARGETS) as pool:
            asked = [(llm, i, policy, options) for i, llm in enumerate(targets)]
            got = list(pool.map(lambda one: answers(*one), asked))
        for llm, remote in zip(targets, remotes, strict=True):
            llm.engine.set_drafter(None)
            remote.disconnect()
        server.stop()
    for own, other in zip(expected, got, strict=True):
        assert [one.token_ids for one in other] == own
        assert sum(one.stats.accepted_tokens for one in other) > 0
    assert server.totals.drafts < server.totals.questions, "nothing was drafted together"
