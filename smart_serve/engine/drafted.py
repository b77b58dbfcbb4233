"""The trees of one step, and what growing them was like."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from smart_serve.config import sampled_shape
from smart_serve.engine.scheduler import StepWork
from smart_serve.engine.sequence import Sequence
from smart_serve.speculation.draft_laws import DraftLaws
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.step_observation import StepObservation
from smart_serve.speculation.tree import Forest


@dataclass(frozen=True, slots=True)
class Drafted:
    """Trees for all decoding sequences of a step, and what growing them was like."""

    forest: Forest
    policy: str = "off"
    growth: Growth | None = None
    layer_rows: tuple[int, ...] = ()
    layer_ms: tuple[float, ...] = ()
    plan_ms: float = 0.0
    """The controller's decision."""
    propose_ms: float = 0.0
    """Asking the drafter, and waiting for its answer."""
    left_out: tuple[Sequence, ...] = ()
    """Decoding sequences that are being drafted for, and have no tree: not to be verified now."""
    failed: bool = False
    """Trees were asked for and did not come, or could not be used."""
    turnaround_ms: float | None = None
    """From the question to its answer, if it was asked during the step before."""

    @property
    def laws(self) -> DraftLaws | None:
        """What the trees were drawn from, if they were."""
        return None if self.growth is None else self.growth.laws

    @property
    def wanted_nodes(self) -> list[int]:
        """Nodes of each tree that room must be had for: those of a tree that was drawn are as many
        as it might have got, lest the room decide by what was drawn."""
        sizes = self.forest.sizes
        shape = sampled_shape(self.policy)
        most = sizes if shape is None else np.where(sizes > 0, shape.num_nodes, 0)
        nodes: list[int] = most.tolist()
        return nodes

    def cut(self, room: Seq[int]) -> Drafted:
        """Each tree's first `room[i]` nodes; none of a tree that was drawn, if not all fit."""
        if self.growth is None or self.laws is None:
            return replace(self, forest=self.forest.cut(room))
        wanted, sizes = self.wanted_nodes, self.forest.sizes.tolist()
        fits = [has >= wants for has, wants in zip(room, wanted, strict=True)]
        forest = self.forest.cut(
            [size if fit else 0 for size, fit in zip(sizes, fits, strict=True)]
        )
        places = [i for i, fit in enumerate(fits) if fit]
        laws = self.laws.only(places, len(fits)).spread(places)
        return replace(self, forest=forest, growth=replace(self.growth, laws=laws))

    def observation(
        self,
        work: StepWork,
        accepted: NDArray[np.bool_],
        context: float,
        verify_ms: float,
        step_ms: float,
    ) -> StepObservation:
        """The step that verified these trees."""
        return StepObservation(
            policy=self.policy,
            batch=len(work.decodes),
            context=context,
            forest=self.forest,
            accepted=accepted,
            growth=self.growth,
            layer_rows=self.layer_rows,
            layer_ms=self.layer_ms,
            verify_ms=verify_ms,
            step_ms=step_ms,
            prefill_tokens=sum(chunk.length for chunk in work.prefills),
            plan_ms=self.plan_ms,
            propose_ms=self.propose_ms,
            left_out=len(self.left_out),
            draft_failed=self.failed,
            turnaround_ms=self.turnaround_ms,
        )
