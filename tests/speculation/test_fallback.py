"""The switch between drafting and plain decoding neither flaps nor sticks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from smart_serve.speculation.fallback import (
    ENTER,
    FIRST_LOOK,
    FIRST_PROBE,
    LAST_PROBE,
    LEAVE,
    LOOK_SHARE,
    REST_STEPS,
    Decision,
    Fallback,
    Outlook,
)


def outlook(speedup: float, probe_price: float = 0.0) -> Outlook:
    return Outlook(speedup, speedup, probe_price)


def trace(speedups: list[float], batch: int = 4) -> list[Decision]:
    fallback = Fallback()
    return [fallback.decide(batch, outlook(speedup)) for speedup in speedups]


def switches(decisions: list[Decision]) -> int:
    modes = [d for d in decisions if d is not Decision.PROBE]
    return sum(a is not b for a, b in itertools.pairwise(modes))


def test_it_starts_hopeful_and_stops_when_it_does_not_pay() -> None:
    assert trace([1.5, 1.2, 0.9]) == [Decision.DRAFT, Decision.DRAFT, Decision.PLAIN]


def test_noise_between_the_two_thresholds_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    between = rng.uniform(LEAVE + 1e-6, ENTER - 1e-6, 250).tolist()
    assert switches(trace([0.9, *between])) == 0
    # While drafting, every plain step is a look at plain decoding, and the next one drafts again.
    drafting = trace([1.5, *between])
    looks = [i for i, decision in enumerate(drafting) if decision is Decision.PLAIN]
    assert min(np.diff(looks)) >= FIRST_LOOK
    assert switches(drafting) == 2 * len(looks)


def test_without_hysteresis_the_same_noise_would_flap() -> None:
    """The control: one threshold in the middle switches all the time."""
    rng = np.random.default_rng(0)
    between = rng.uniform(LEAVE + 1e-6, ENTER - 1e-6, 300)
    on = between > (LEAVE + ENTER) / 2
    assert int(np.sum(on[1:] != on[:-1])) > 100


def test_probes_back_off_and_stay_rare() -> None:
    decisions = trace([0.5] * 20_000)
    probes = [i for i, d in enumerate(decisions) if d is Decision.PROBE]
    gaps = np.diff(probes)
    assert probes[0] == FIRST_PROBE - 1
    assert np.all(np.diff(gaps) >= 0)
    assert gaps.max() == LAST_PROBE
    assert len(probes) / len(decisions) < 0.005


def test_it_comes_back_when_it_pays_again_and_probes_quickly_after_that() -> None:
    decisions = trace([0.5] * 3_000 + [1.2] * 5 + [0.5] * (FIRST_PROBE + 1))
    assert decisions[3_000:3_005] == [Decision.DRAFT] * 5
    assert Decision.PROBE in decisions[3_005:]


def test_another_batch_is_probed_afresh() -> None:
    fallback = Fallback()
    for _ in range(2_000):
        fallback.decide(32, outlook(0.5))
    decisions = [fallback.decide(1, outlook(0.5)) for _ in range(FIRST_PROBE + 1)]
    assert Decision.PROBE in decisions


def test_batches_that_wobble_do_not_defeat_the_back_off() -> None:
    """Continuous batching changes the batch all the time."""
    fallback = Fallback()
    decisions = [fallback.decide(20 + i % 5, outlook(0.5)) for i in range(20_000)]
    assert decisions.count(Decision.PROBE) / len(decisions) < 0.005


def test_plain_decoding_is_looked_at_now_and_then_while_drafting_pays() -> None:
    wait = round((1 - 1 / 2.0) / LOOK_SHARE)
    decisions = trace([2.0] * (4 * wait))
    assert decisions.count(Decision.PLAIN) == 4
    assert decisions.count(Decision.DRAFT) == 4 * wait - 4


def test_the_less_drafting_brings_the_more_often_plain_decoding_is_looked_at() -> None:
    steps = 20_000
    for speedup in (1.02, 1.1, 1.5, 4.0):
        looks = trace([speedup] * steps).count(Decision.PLAIN)
        lost = looks / steps * (1 - 1 / speedup)
        assert lost == pytest.approx(LOOK_SHARE, rel=0.15)
    assert trace([1.001] * 800).count(Decision.PLAIN) == 800 // FIRST_LOOK


def test_a_probe_that_raises_the_prediction_is_followed_soon_by_another() -> None:
    fallback = Fallback()
    for _ in range(5_000):
        fallback.decide(4, outlook(0.5))
    speedup, probes = 0.5, []
    for step in range(2_000):
        decision = fallback.decide(4, outlook(speedup))
        if decision is Decision.PROBE:
            probes.append(step)
            speedup += 0.02
    assert np.diff(probes).max() <= 2 * FIRST_PROBE


def test_probes_that_are_dear_are_rare_and_what_they_cost_is_bounded() -> None:
    fallback, price = Fallback(), 8.0
    decisions = [fallback.decide(4, outlook(0.5, price)) for _ in range(20_000)]
    assert 0 < decisions.count(Decision.PROBE) * price <= 0.01 * len(decisions)


def test_a_backlog_that_comes_and_goes_is_no_promise() -> None:
    """The speedup rises after each probe, for the drafter has caught up; it is still no better."""
    fallback, since, probes = Fallback(), 0, 0
    for _ in range(20_000):
        decision = fallback.decide(4, Outlook(0.9 - 0.001 * min(since, 300), 0.9, 0.5))
        since = 0 if decision is Decision.PROBE else since + 1
        probes += decision is Decision.PROBE
    assert probes < 100


def test_plain_decoding_rests_between_looks_and_another_batch_wakes_it() -> None:
    fallback = Fallback()
    fallback.decide(4, outlook(0.5))
    rested = 0
    while fallback.rests(4):
        rested += 1
    assert rested == REST_STEPS - 1
    fallback.decide(4, outlook(0.5))
    assert fallback.rests(5)
    assert not fallback.rests(64)


def test_drafting_never_rests() -> None:
    fallback = Fallback()
    fallback.decide(4, outlook(1.5))
    assert not fallback.rests(4)
