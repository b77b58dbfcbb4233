"""Faults stay with their owner: a drafter's cost a plain step, a sequence's end that sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from draft_doubles import KnowingDrafter, LyingDrafter, chain, thicket
from engine_rig import Case, answers, make_engine, run_all
from small_models import VOCAB

from smart_serve.drafters.protocol import DrafterUnavailable, Proposal
from smart_serve.messages import ImageSpan
from smart_serve.speculation.controller import SpeculationController
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.tree import Forest

Spoil = Callable[[Proposal], Proposal]


def forest(change: Callable[[Forest], dict[str, object]]) -> Spoil:
    def spoil(proposal: Proposal) -> Proposal:
        honest = proposal.growth.forest
        return replace(
            proposal, growth=replace(proposal.growth, forest=replace(honest, **change(honest)))
        )

    return spoil


def unavailable(proposal: Proposal) -> Proposal:
    raise DrafterUnavailable("gone")


NONSENSE: dict[str, Spoil] = {
    "candidates of trees that are none": lambda p: replace(
        p, growth=replace(p.growth, considered=Forest.empty(0))
    ),
    "no trees": lambda p: replace(p, growth=Growth(Forest.empty(0), (), ())),
    "a tree too many": lambda p: replace(
        p, growth=Growth(p.growth.forest.spread(p.growth.forest.num_trees + 1, range(
            p.growth.forest.num_trees)), (), ())
    ),
    "tokens outside the vocabulary": forest(lambda f: {"token_ids": f.token_ids + VOCAB}),
    "negative tokens": forest(lambda f: {"token_ids": f.token_ids - VOCAB}),
    "wrong tokens": forest(lambda f: {"token_ids": (f.token_ids + 1) % VOCAB}),
    "parents that come later": forest(lambda f: {"parents": f.parents + 1}),
    "negative parents": forest(lambda f: {"parents": f.parents - 1}),
    "depths that do not fit": forest(lambda f: {"depths": f.depths + 1}),
    "offsets beyond the nodes": forest(lambda f: {"offsets": f.offsets + 1}),
    "short columns": forest(lambda f: {"parents": f.parents[:-1]}),
    "confidences that are no numbers": forest(lambda f: {"confidences": f.confidences * np.nan}),
    "confidences above one": forest(lambda f: {"confidences": f.confidences + 7.0}),
    "path probabilities below zero": forest(lambda f: {"path_probs": -1.0 - f.path_probs}),
    "an unknown sequence that was not asked for": lambda p: replace(p, unknown=(999,)),
    "all sequences unknown": lambda p: replace(
        p, unknown=tuple(range(p.growth.forest.num_trees))
    ),
    "times without rows": lambda p: replace(p, layer_ms=(1.0, 2.0), layer_rows=(1,)),
    "times that are no numbers": lambda p: replace(p, layer_ms=(np.nan,), layer_rows=(1,)),
    "a profile deeper than the tree": lambda p: replace(
        p, growth=replace(p.growth, best_by_depth=((0.5,) * 4,) * 99, child_mass=(0.5,) * 99)
    ),
    "a ragged profile": lambda p: replace(
        p, growth=replace(p.growth, best_by_depth=((0.5,), (0.5, 0.5)))
    ),
    "a profile that is no number": lambda p: replace(
        p, growth=replace(p.growth, best_by_depth=((np.nan,) * 4,), child_mass=(np.nan,))
    ),
    "unavailable": unavailable,
}  # fmt: skip


@pytest.mark.parametrize("policy", ["eagle2", "smart"])
@pytest.mark.parametrize("kind", NONSENSE)
def test_a_drafter_that_talks_nonsense_never_changes_tokens(
    small_llava: Path, llava_cases: list[Case], policy: str, kind: str
) -> None:
    cases = llava_cases[:5]
    honest = KnowingDrafter(chain(3))
    honest.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(cases)}
    liar = LyingDrafter(honest, NONSENSE[kind])
    engine = make_engine(small_llava, liar, policy)
    assert answers(run_all(engine, cases)) == [case.answer for case in cases]
    assert liar.asked > 0
    assert beliefs_are_numbers(engine.controller)


def beliefs_are_numbers(controller: SpeculationController) -> bool:
    plan = controller.plan("eagle2", 4, 50.0, 4)
    assert plan is not None
    values = [*plan.verify_knot_ms, *plan.draft_layer.y, *plan.child_mass, plan.wire_ms]
    probabilities = [p for row in controller._calibration.maps() for p in row]
    return bool(np.isfinite(values).all()) and all(0.0 <= p <= 1.0 for p in probabilities)


def test_a_drafter_that_comes_and_goes_never_changes_tokens(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    rng = np.random.default_rng(2)
    honest = KnowingDrafter(thicket(rng, VOCAB))
    honest.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(llava_cases)}
    drafter = LyingDrafter(honest, lambda p: unavailable(p) if rng.random() < 0.1 else p)
    engine = make_engine(small_llava, drafter, max_running=4)
    sequences = [engine.add(case.request(), case.features) for case in llava_cases]
    while engine.scheduler.has_work:
        engine.step()
        if rng.random() < 0.1:
            engine.set_drafter(None if engine.drafting.drafter else drafter)
    assert answers(sequences) == [case.answer for case in llava_cases]


@pytest.mark.parametrize("speculates", [False, True])
def test_a_row_that_is_not_a_number_ends_only_its_sequence(
    small_llava: Path,
    llava_cases: list[Case],
    speculates: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = llava_cases[:5]
    honest = KnowingDrafter(chain(2))
    honest.texts = {i: [*case.token_ids, *case.answer] for i, case in enumerate(cases)}
    engine = make_engine(small_llava, honest if speculates else None)
    sequences = [engine.add(case.request(), case.features) for case in cases]
    for _ in range(3):
        engine.step()
    real = engine.model.logits

    def one_bad_row(hidden: torch.Tensor) -> torch.Tensor:
        logits = real(hidden).clone()
        logits[0, 3] = float("nan")
        return logits

    monkeypatch.setattr(engine.model, "logits", one_bad_row)
    emissions = engine.step()
    monkeypatch.undo()
    failed = [e.sequence for e in emissions if e.sequence.finish_reason == "error"]
    assert failed == [sequences[0]]
    chunk = next(e.chunk for e in emissions if e.sequence is sequences[0])
    assert chunk is not None
    assert chunk.error == "the model's output is not finite"
    while engine.scheduler.has_work:
        engine.step()
    assert answers(sequences[1:]) == [case.answer for case in cases[1:]]
    engine.scheduler.pool.check_idle()


def test_keys_that_are_not_numbers_do_not_outlive_their_sequence(
    small_llava: Path, llava_cases: list[Case]
) -> None:
    """Blocks are reused, and a masked NaN is still NaN after the softmax."""
    case = llava_cases[1]
    engine = make_engine(small_llava, None, "off", kv_tokens=64)
    # Longer, so that the good one's last block keeps something of it beyond its own tokens.
    longer = Case((*case.token_ids, *range(5, 20)), case.spans, case.features)
    bad = engine.add(longer.request(), [np.full_like(case.features[0], np.nan)])
    while engine.scheduler.has_work:
        engine.step()
    assert bad.finish_reason == "error"
    assert answers(run_all(engine, [case])) == [case.answer]


@pytest.mark.parametrize("aborted", [False, True])
def test_keys_that_are_not_numbers_hurt_no_neighbour_even_in_an_early_chunk(
    small_llava: Path, llava_cases: list[Case], aborted: bool
) -> None:
    case = llava_cases[1]
    engine = make_engine(small_llava, None, "off", kv_tokens=144, prefill_chunk_tokens=8)
    span = case.spans[0]
    rest = (*case.token_ids[span.start :], *range(5, 35))
    early = Case(rest, (replace_start(span),), case.features)
    bad = engine.add(early.request(), [np.full_like(case.features[0], np.nan)])
    others = [engine.add(one.request(), one.features) for one in llava_cases[:4]]
    engine.step()
    if aborted:
        engine.abort(bad)
    while engine.scheduler.has_work:
        engine.step()
    assert bad.finish_reason == "error"
    assert answers(others) == [one.answer for one in llava_cases[:4]]


def replace_start(span: ImageSpan) -> ImageSpan:
    return ImageSpan(0, span.length, span.content_hash)
