"""One half of the batch is verified while the other half is drafted for: the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import test_lockstep as lockstep
from draft_doubles import KnowingDrafter, chain, thicket
from engine_rig import (
    Case,
    answers,
    make_engine,
    random_feature_drafter,
    run_all,
)
from small_models import VOCAB

from smart_serve.drafters.protocol import (
    DraftBatch,
    Drafter,
    DrafterInfo,
    DrafterUnavailable,
    Proposal,
)
from smart_serve.engine.engine import Engine
from smart_serve.messages import SamplingParams
from smart_serve.speculation.overlap import Overlap

SAMPLED = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=5)


class Distant:
    """A drafter that is asked first and waited for later; it answers what it was asked then."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.num_asked = 0
        self.num_waited = 0
        self.is_late = False
        """It gives the answer to the question before."""
        self._last: Proposal | None = None
        self.fails_after: int | None = None
        """Questions, before it is lost."""

    @property
    def info(self) -> DrafterInfo:
        return self.drafter.info

    def propose(self, batch: DraftBatch) -> Proposal:
        assert not batch.growth.overlaps
        self._check()
        return self.drafter.propose(batch)

    def ask(self, batch: DraftBatch) -> Callable[[], Proposal]:
        assert batch.growth.overlaps
        self._check()
        self.num_asked += 1
        # As over a wire: what the target does meanwhile does not change what it has sent.
        proposal = self.drafter.propose(batch)
        if self.is_late and self._last is not None:
            proposal, self._last = self._last, proposal
        else:
            self._last = proposal

        def wait() -> Proposal:
            self._check()
            self.num_waited += 1
            return proposal

        return wait

    def close(self, sequence_ids: Sequence[int]) -> None:
        self.drafter.close(sequence_ids)

    def _check(self) -> None:
        if self.fails_after is not None and self.num_asked >= self.fails_after:
            raise DrafterUnavailable("lost")


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """It always seems to pay."""
    monkeypatch.setattr(Overlap, "gain", lambda self, whole, half, batch: 2.0)


def batches_of(engine: Engine) -> list[tuple[int, int]]:
    """(verified, left out) of every step with decoding sequences from now on."""
    seen: list[tuple[int, int]] = []
    observe = engine.controller.observe
    engine.controller.observe = lambda one: (seen.append((one.batch, one.left_out)), observe(one))
    return seen


@pytest.mark.parametrize("policy", ["eagle2", "smart", "smart-paper", "chain:3", "adaptive-chain"])
@pytest.mark.parametrize("every", [0, 1, 3])
def test_greedy_answers_are_those_of_generate(
    small_llava: Path, llava_cases: list[Case], policy: str, every: int
) -> None:
    distant = Distant(random_feature_drafter(small_llava))
    engine = make_engine(small_llava, distant, policy)
    batches = batches_of(engine)
    got = answers(run_all(engine, llava_cases, every=every))
    assert got == [case.answer for case in llava_cases]
    overlapped = [one for one in batches if one[1]]
    if policy == "adaptive-chain":
        assert not overlapped
        return
    assert min(now for now, _ in overlapped) > 0
    assert any(abs(now - meanwhile) <= 1 for now, meanwhile in overlapped)
    # `smart` soon leaves a drafter that is always wrong.
    assert min(distant.num_waited, len(overlapped)) > (0 if policy == "smart" else 5)


@pytest.mark.parametrize("policy", ["eagle2", "smart-drawn"])
def test_seeded_answers_are_those_without_overlap(
    small_llava: Path, llava_cases: list[Case], policy: str
) -> None:
    plain = make_engine(small_llava, None, "off")
    distant = Distant(random_feature_drafter(small_llava))
    engine = make_engine(small_llava, distant, policy)
    expected = answers(run_all(plain, llava_cases, SAMPLED))
    assert answers(run_all(engine, llava_cases, SAMPLED)) == expected
    # What is drawn is left alone.
    assert (distant.num_asked > 0) == (policy == "eagle2")


@pytest.mark.parametrize("is_late", [False, True])
def test_each_tree_comes_to_its_sequence_while_it_holds(
    small_llama: Path, llama_cases: list[Case], is_late: bool
) -> None:
    """A drafter that is always right saves nearly all steps; the control, whose trees come a
    question late, hardly any. The tokens are right in any case."""
    drafter = KnowingDrafter(chain(4))
    distant = Distant(drafter)
    distant.is_late = is_late
    engine = make_engine(small_llama, distant, "chain:4")
    chosen = llama_cases[:6]
    sequences = [engine.add(case.request()) for case in chosen]
    for sequence, case in zip(sequences, chosen, strict=True):
        drafter.texts[sequence.id] = [*case.token_ids, *case.answer]
    while engine.scheduler.has_work:
        engine.step()
    assert answers(sequences) == [case.answer for case in chosen]
    accepted = sum(sequence.tally.accepted for sequence in sequences)
    drafted = sum(sequence.tally.drafted for sequence in sequences)
    assert (accepted > 0.9 * drafted) != is_late
    assert drafted > 20


def test_switched_off_nothing_is_left_out(small_llava: Path, llava_cases: list[Case]) -> None:
    distant = Distant(random_feature_drafter(small_llava))
    engine = make_engine(small_llava, distant, "eagle2", overlap=False)
    assert answers(run_all(engine, llava_cases)) == [case.answer for case in llava_cases]
    assert distant.num_asked == 0


@pytest.mark.parametrize("questions", [1, 2, 5])
def test_a_drafter_lost_on_the_way_costs_no_token(
    small_llava: Path, llava_cases: list[Case], questions: int
) -> None:
    distant = Distant(random_feature_drafter(small_llava))
    distant.fails_after = questions
    engine = make_engine(small_llava, distant, "eagle2")
    assert answers(run_all(engine, llava_cases)) == [case.answer for case in llava_cases]
    assert distant.num_asked == questions
    assert engine.totals.draft_failures > 0


def test_another_drafter_on_the_way_costs_no_token(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    engine = make_engine(small_llava, None, "eagle2")
    sequences = [engine.add(case.request(), case.features) for case in llava_cases]
    step = 0
    while engine.scheduler.has_work:
        if step % 3 == 0:
            asked = step % 6 == 0
            engine.set_drafter(Distant(random_feature_drafter(small_llava)) if asked else None)
        engine.step()
        step += 1
    assert answers(sequences) == [case.answer for case in llava_cases]
    assert engine.totals.drafted_steps > 2


@pytest.fixture(scope="module")
def cases(small_llama: Path, llama_cases: list[Case]) -> list[Case]:
    return lockstep.long_cases(small_llama, llama_cases)


def test_random_traffic_stays_in_step(small_llama: Path, cases: list[Case]) -> None:
    """Requests that come, are aborted and pre-empted while they are drafted for."""
    traffic = lockstep.Traffic.start(small_llama, cases)
    rng = np.random.default_rng(0)
    drafter = KnowingDrafter(thicket(rng, VOCAB, max_nodes=6))
    distant = Distant(drafter)
    traffic.drafter = drafter
    traffic.engine.set_drafter(distant)
    reference = lockstep.Reference(small_llama)
    for step in range(200):
        traffic.step()
        assert traffic.texts_hold()
        if step % 25 == 7:
            assert traffic.is_in_step(reference)
    tallies = [sequence.tally for sequence in traffic.sequences]
    assert distant.num_waited > 50
    assert sum(tally.accepted for tally in tallies) > 50
    assert sum(tally.pre_emptions for tally in tallies) > 2
