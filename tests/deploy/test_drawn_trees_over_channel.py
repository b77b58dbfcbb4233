"""A drafter in another process draws what one in this process draws, and says from what; and it
tells the candidates that are not to be verified, if asked."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest

from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.server import DrafterServer
from smart_serve.drafters.ngram import NgramDrafter
from smart_serve.drafters.protocol import DraftBatch, DraftInput
from smart_serve.speculation.plan import GrowthPlan

SECRET = bytes(range(32))
TEXT = np.asarray([1, 2, 3, 1, 2, 4, 1, 2, 3, 5, 1, 2], np.int64)


@pytest.mark.parametrize("policy", ["delayed:2,1,2", "distinct:2,2"])
def test_the_laws_cross_the_channel(policy: str) -> None:
    plan = GrowthPlan(
        policy=policy, max_nodes=64, max_depth=3, top_k=8,
        draw_seeds=(3, 4, 2**53 - 1), temperatures=(1.0, 0.5, 2.0), traced=True,
    )  # fmt: skip
    # The second sequence is not held up to its start: its tree is empty, and the others' seeds and
    # temperatures stay theirs.
    inputs = tuple(DraftInput(i, 9 if i == 1 else 0, TEXT, None) for i in range(3))
    local, far = (NgramDrafter(None, max_tokens=100) for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="ss-") as folder:
        server = DrafterServer(far, SECRET, unix_path=Path(folder, "d"), tcp_host="127.0.0.1")
        server.start()
        remote = RemoteDrafter(SECRET, unix_path=Path(folder, "d"))
        proposal = remote.propose(DraftBatch(inputs, plan))
        remote.disconnect()
        server.stop()
    expected = local.propose(DraftBatch(inputs, plan))
    laws, own = proposal.growth.laws, expected.growth.laws
    assert laws is not None
    assert own is not None
    for field in dataclasses.fields(own):
        assert np.array_equal(getattr(laws, field.name), getattr(own, field.name))
    considered, own_considered = proposal.growth.considered, expected.growth.considered
    assert considered is not None
    assert own_considered is not None
    for field in dataclasses.fields(own_considered):
        assert np.array_equal(getattr(considered, field.name), getattr(own_considered, field.name))
    assert considered.sizes.tolist()[1] == 0 < considered.num_nodes
    assert proposal.problem(3, 10, plan) is None
    assert proposal.unknown == (1,)
    assert set(laws.trees.tolist()) == {0, 2}
    # The third sequence's law is flatter than the first's, as its temperature is higher.
    assert laws.probs[laws.trees == 0][0].max() > laws.probs[laws.trees == 2][0].max()
    assert proposal.problem(3, 4, plan) is not None
