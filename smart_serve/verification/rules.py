"""Verification rules of sampled draft trees, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from smart_serve.verification.block import block
from smart_serve.verification.chooser import Chooser
from smart_serve.verification.descent import descend
from smart_serve.verification.naive import naive
from smart_serve.verification.sampled_trees import SampledTrees, Verdict
from smart_serve.verification.specinfer import specinfer
from smart_serve.verification.spectr import spectr
from smart_serve.verification.traversal import traversal

SAMPLED_RULES: dict[str, Callable[[SampledTrees, Chooser], Verdict]] = {
    "naive": partial(descend, naive),
    "specinfer": partial(descend, specinfer),
    "spectr": partial(descend, spectr),
    "traversal": traversal,
    "block": block,
}
"""All of these read the drafter's distributions; `match` needs none and serves any tree."""
