"""The engine's running sums against what its requests were told, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
from draft_doubles import KnowingDrafter, LyingDrafter, chain
from engine_rig import Case, make_engine, random_feature_drafter, run_all

from smart_serve.drafters.protocol import DrafterUnavailable, Proposal
from smart_serve.engine.engine import Engine
from smart_serve.engine.load import StepRates


@pytest.fixture(scope="module", params=["off", "eagle2"])
def engine(request: pytest.FixtureRequest, small_llava: Path) -> Engine:
    return make_engine(small_llava, random_feature_drafter(small_llava), request.param)


def test_they_add_up_to_what_each_request_was_told(engine: Engine, llava_cases: list[Case]) -> None:
    stats = [sequence.stats() for sequence in run_all(engine, llava_cases, every=2)]
    totals = engine.totals
    assert totals.tokens == sum(one.completion_tokens for one in stats)
    assert totals.accepted == sum(one.accepted_tokens for one in stats)
    assert totals.accepted + totals.rejected == sum(one.drafted_tokens for one in stats)
    assert totals.prompt_tokens == sum(one.prompt_tokens for one in stats)
    assert totals.cached_tokens == sum(one.cached_tokens for one in stats)
    assert sum(totals.ended.values()) == len(stats)
    drafts = engine.config.speculation.policy != "off"
    assert (totals.drafted_steps > 0) == (totals.rejected > 0) == drafts
    assert totals.drafted_steps <= totals.tree_depth <= 5 * totals.drafted_steps
    assert (totals.expected > 0) == drafts
    assert totals.judged == totals.accepted


def test_the_parts_of_a_step_are_no_longer_than_the_step(
    engine: Engine, llava_cases: list[Case]
) -> None:
    before = engine.totals.copy()
    run_all(engine, llava_cases[:4])
    totals = engine.totals
    assert totals.steps > before.steps
    assert totals.verify_ms > before.verify_ms
    assert sum(totals.split_ms().values()) == pytest.approx(totals.total_ms)
    assert all(ms >= 0 for ms in totals.split_ms().values())
    # Only steps that mostly decode can be told from plain ones.
    assert 0 < totals.measured.total_ms < totals.total_ms
    assert 0 < totals.predicted.verify_ms < totals.predicted.total_ms
    assert totals.plain_ms > 0


def test_a_right_drafter_saves_the_steps_that_plain_decoding_would_take(
    small_llama: Path, llama_cases: list[Case]
) -> None:
    (case,) = llama_cases[:1]
    plain = make_engine(small_llama, None, "off")
    run_all(plain, [case])
    drafter = KnowingDrafter(chain(4))
    drafted = make_engine(small_llama, drafter)
    drafter.texts[0] = [*case.token_ids, *case.answer, *[0] * 8]
    run_all(drafted, [case])
    assert drafted.totals.steps < plain.totals.steps
    assert drafted.totals.tokens == plain.totals.tokens
    assert drafted.totals.accepted + drafted.totals.steps >= drafted.totals.tokens
    # In one sequence, accepted tokens are the plain steps that were spared.
    per_step = [e.totals.plain_ms / e.totals.predicted.total_ms for e in (plain, drafted)]
    assert per_step[0] == pytest.approx(1.0)
    assert per_step[1] > 1.5


def test_a_drafter_without_an_answer_is_counted(small_llama: Path, llama_cases: list[Case]) -> None:
    def fail(proposal: Proposal) -> Proposal:
        raise DrafterUnavailable("gone")

    honest = KnowingDrafter(chain(2))
    engine = make_engine(small_llama, LyingDrafter(honest, fail))
    honest.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(llama_cases)}
    run_all(engine, llama_cases[:1])
    assert engine.totals.draft_failures > 0
    assert engine.totals.accepted + engine.totals.rejected == 0


def test_a_copy_stands_still(small_llama: Path, llama_cases: list[Case]) -> None:
    engine = make_engine(small_llama, None, "off")
    run_all(engine, llama_cases[:1])
    copy = engine.totals.copy()
    run_all(engine, llama_cases[:1])
    assert copy.ended != engine.totals.ended
    assert copy.steps < engine.totals.steps


def test_a_request_that_never_ran_has_no_prompt_here(
    small_llama: Path, llama_cases: list[Case]
) -> None:
    engine = make_engine(small_llama, None, "off")
    sequence = engine.add(llama_cases[0].request())
    engine.abort(sequence)
    assert engine.totals.ended == {"cancelled": 1}
    assert engine.totals.prompt_tokens == 0


def test_the_load_tells_what_was_predicted_of_the_steps_that_it_measures(
    small_llama: Path, llama_cases: list[Case]
) -> None:
    engine, rates = make_engine(small_llama, None, "off"), StepRates()
    engine.add(llama_cases[0].request())
    engine.step()  # the prompt's: the tables do not speak of it
    rates.add(engine.last_step, 1, engine.last_price)
    load = rates.load(engine)
    assert load.decode_step_ms == load.predicted_step_ms == 0.0
    measured, predicted = [], []
    while engine.scheduler.has_work:
        engine.step()
        assert engine.last_step is not None
        assert engine.last_price is not None
        measured.append(engine.last_step.step_ms)
        predicted.append(engine.last_price.predicted.total_ms)
        rates.add(engine.last_step, 1, engine.last_price)
    load = rates.load(engine)
    assert min(measured) < load.decode_step_ms < max(measured)
    assert min(predicted) <= load.predicted_step_ms <= max(predicted)
