"""What replicas have learnt of the drafter reaches those that have learnt nothing yet."""

from __future__ import annotations

import numpy as np
from load_reports import report

from smart_serve.config import SpeculationConfig
from smart_serve.messages import CalibrationCounts, SpeculationPlan
from smart_serve.routing.plan import PlanBounds, plan_for
from smart_serve.routing.report_book import ReportBook
from smart_serve.routing.shared_calibration import MOST_TEACHERS, SharedCalibration
from smart_serve.speculation.calibration import INHERITED, Calibration, acceptance

BOUNDS = PlanBounds(SpeculationConfig())
CONFIDENCES = np.linspace(0.1, 0.9, 9)
DEPTHS = np.arange(1, 4)


def taught(accepts: bool, rounds: int = 50) -> Calibration:
    """By a drafter all of whose tokens are accepted, or none."""
    calibration = Calibration(3)
    for _ in range(rounds):
        for depth in DEPTHS:
            depths = np.full(len(CONFIDENCES), depth)
            calibration.count(depths, CONFIDENCES, np.full(len(CONFIDENCES), accepts))
    return calibration


def mean(calibration: Calibration) -> float:
    maps = calibration.maps()
    return float(np.mean([acceptance(maps, int(depth), CONFIDENCES) for depth in DEPTHS]))


def plan_of_newcomer(book: ReportBook, depth: int = 3) -> SpeculationPlan:
    new = report("new", learnt_steps=0, calibration=Calibration(depth).counts())
    book.record(new, 1e6)
    return plan_for(new, book, BOUNDS, 1)


def test_a_newcomer_believes_what_the_others_have_seen() -> None:
    book = ReportBook()
    for name, accepts in (("a", False), ("b", False), ("c", False), ("d", True)):
        counts = taught(accepts).counts()
        book.record(report(name, learnt_steps=500, calibration=counts), 0)
    lesson = plan_of_newcomer(book).calibration
    assert lesson is not None
    newcomer = Calibration(3)
    blind = mean(newcomer)
    newcomer.inherit(lesson)
    assert abs(mean(newcomer) - 0.25) < 0.05 < abs(blind - 0.25)


def test_its_own_experience_soon_outweighs_it() -> None:
    newcomer = taught(accepts=False, rounds=1)
    newcomer.inherit(taught(accepts=True).counts())
    assert mean(newcomer) > 0.5
    for _ in range(int(4 * INHERITED / (len(CONFIDENCES) * len(DEPTHS)))):
        for depth in DEPTHS:
            depths = np.full(len(CONFIDENCES), depth)
            newcomer.count(depths, CONFIDENCES, np.zeros(len(CONFIDENCES), bool))
    assert mean(newcomer) < 0.25


def test_only_newcomers_are_taught_and_only_by_the_experienced() -> None:
    book = ReportBook()
    counts = taught(accepts=True).counts()
    novice = report("novice", learnt_steps=3, calibration=counts)
    book.record(novice, 0)
    assert plan_for(novice, book, BOUNDS, 1).calibration is None
    old = report("old", learnt_steps=500, calibration=counts)
    book.record(old, 0)
    assert plan_for(old, book, BOUNDS, 1).calibration is None
    assert plan_for(report("old", learnt_steps=500), book, BOUNDS, 1).calibration is None
    assert plan_for(novice, book, BOUNDS, 1).calibration == counts
    # What is passed on is kept once: views do not carry it.
    assert all(one.report.calibration is None for one in book.view(0).replicas)


def test_those_that_are_gone_have_taught_too() -> None:
    book = ReportBook()
    book.record(report("a", learnt_steps=500, calibration=taught(accepts=True).counts()), 0)
    assert book.view(1e6).replicas == ()
    assert plan_of_newcomer(book).calibration is not None
    # Trees of another depth are another matter.
    assert plan_of_newcomer(book, depth=5).calibration is None


def test_counts_that_do_not_fit_teach_nothing() -> None:
    calibration = Calibration(3)
    before = calibration.maps()
    for wrong in (
        Calibration(4).counts(),
        CalibrationCounts(seen=b"", accepted=b""),
        CalibrationCounts(seen=taught(accepts=True).counts().seen, accepted=b""),
    ):
        calibration.inherit(wrong)
    assert calibration.maps() == before


def test_the_teachers_are_bounded_and_the_latest() -> None:
    shared = SharedCalibration()
    one = taught(accepts=True, rounds=1).counts()
    for number in range(2 * MOST_TEACHERS):
        shared.learn(f"r{number}", one)
    merged = shared.merged(one.size)
    assert merged is not None
    total, single = (np.frombuffer(c.seen, np.float32).sum() for c in (merged, one))
    assert abs(total / single - MOST_TEACHERS) < 1e-3 * MOST_TEACHERS
