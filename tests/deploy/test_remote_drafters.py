"""Each kind of drafter behind the step channel answers as it does in process."""

from __future__ import annotations

import tempfile
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from drafter_kinds import KINDS, inputs_for, name_of

from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.server import DrafterServer
from smart_serve.config import EngineConfig
from smart_serve.drafters.load import load_drafter
from smart_serve.drafters.protocol import DraftBatch
from smart_serve.speculation.plan import GrowthPlan

SECRET = b"a secret that only this test has"
PLAN = GrowthPlan(policy="eagle2", max_nodes=64, max_depth=3, top_k=3, nodes_per_tree=9)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_as_in_process(small_llava: Path, tmp_path: Path, kind: str) -> None:
    name = name_of(kind, small_llava, tmp_path / "drafter")
    config = EngineConfig(kv_tokens=1024)
    local, far = (load_drafter(name, small_llava, config) for _ in range(2))
    rng = np.random.default_rng(0)
    # A short path, because a Unix socket's has about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ss-") as folder:
        server = DrafterServer(far, SECRET, unix_path=Path(folder, "d"))
        server.start()
        remote = RemoteDrafter(SECRET, unix_path=Path(folder, "d"))
        assert replace(remote.info, layer_cost=local.info.layer_cost) == local.info
        start = 0
        for count in (20, 1, 3):
            item = inputs_for(local.info, rng, start, count)
            batch = DraftBatch((item, msgspec.structs.replace(item, sequence_id=1)), PLAN)
            here, there = local.propose(batch), remote.propose(batch)
            assert here.growth.forest.num_nodes > 0
            assert here.unknown == there.unknown == ()
            for field in fields(here.growth.forest):
                one, two = (getattr(side.growth.forest, field.name) for side in (here, there))
                assert np.array_equal(one, two), field.name
            start += count
        remote.disconnect()
        server.stop()
