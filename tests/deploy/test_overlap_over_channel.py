"""Half of the batch is verified while a drafter in another thread, behind the channel, drafts for
the other half."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.server import DrafterServer
from smart_serve.config import EngineConfig
from smart_serve.drafters.load import load_drafter
from smart_serve.drafters.protocol import SharedDrafter
from smart_serve.llm import LLM
from smart_serve.messages import SamplingParams
from smart_serve.models.folders import resolve_model
from smart_serve.speculation.overlap import Overlap

SECRET = b"a secret that only this test has"
TARGET = resolve_model("bundled")
PROMPTS: list[dict[str, Any]] = [
    {"prompt": "What is in the picture?", "images": [str(TARGET.parent / "example.png")]},
    *({"prompt": f"Count from {first} to ten."} for first in ("one", "two", "three")),
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(drafter=None, max_running=4, kv_tokens=4096)


@pytest.fixture(scope="module")
def drafter() -> SharedDrafter:
    return load_drafter("bundled", TARGET, EngineConfig(kv_tokens=4096))


@pytest.fixture
def server(drafter: SharedDrafter) -> Iterator[tuple[DrafterServer, Path]]:
    with tempfile.TemporaryDirectory(prefix="ss-") as folder:
        path = Path(folder, "d")
        one = DrafterServer(drafter, SECRET, unix_path=path)
        one.start()
        yield one, path
        one.stop()


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """It always seems to pay."""
    monkeypatch.setattr(Overlap, "gain", lambda self, whole, half, batch: 2.0)


def answers(llm: LLM, policy: str, temperature: float) -> list[tuple[int, ...]]:
    sampling = SamplingParams(
        max_tokens=24, temperature=temperature, seed=3, ignore_eos=True, policy=policy
    )
    return [one.token_ids for one in llm.generate(PROMPTS, sampling)]


@pytest.mark.parametrize(
    ("policy", "temperature"), [("smart", 0.0), ("eagle2", 1.0), ("chain:3", 0.0)]
)
def test_tokens_are_those_of_plain_decoding(
    llm: LLM, server: tuple[DrafterServer, Path], policy: str, temperature: float
) -> None:
    llm.engine.set_drafter(None)
    expected = answers(llm, policy, temperature)
    before = llm.engine.totals.copy()
    remote = RemoteDrafter(SECRET, unix_path=server[1])
    llm.engine.set_drafter(remote)
    assert answers(llm, policy, temperature) == expected
    after = llm.engine.totals
    assert after.accepted > before.accepted
    assert after.draft_failures == before.draft_failures
    # Every question is for half of the sequences, so there are more steps than for all of them.
    assert server[0].totals.sequences < 3 * server[0].totals.questions
    llm.engine.set_drafter(None)
    remote.disconnect()


@pytest.mark.parametrize("steps", [4, 7])
def test_a_drafter_that_dies_while_it_is_asked_costs_no_token(
    llm: LLM, server: tuple[DrafterServer, Path], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    llm.engine.set_drafter(None)
    expected = answers(llm, "eagle2", 0.0)
    remote = RemoteDrafter(SECRET, unix_path=server[1])
    llm.engine.set_drafter(remote)
    asked, ask = 0, remote.ask

    def dying(batch: Any) -> Any:
        nonlocal asked
        asked += 1
        answer = ask(batch)
        if asked == steps:
            server[0].stop()
        return answer

    monkeypatch.setattr(remote, "ask", dying)
    before = llm.engine.totals.draft_failures
    assert answers(llm, "eagle2", 0.0) == expected
    assert asked >= steps
    assert llm.engine.totals.draft_failures > before
    assert not remote.is_connected
    llm.engine.set_drafter(None)
