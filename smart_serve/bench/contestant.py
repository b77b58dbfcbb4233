"""Who takes part in a benchmark, by name: a policy, a policy with the rule that verifies its trees
(`delayed:2,1,2+traversal`), or `smart` without one of its parts (`smart-path-mean`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smart_serve.config import ABLATIONS, Ablation, rule_objection, sampled_shape


@dataclass(frozen=True, slots=True)
class Contestant:
    """What a name stands for."""

    policy: str
    verification: str = "match"
    ablation: Ablation | None = None

    @staticmethod
    def of(name: str) -> Contestant:
        for ablation in ABLATIONS:
            if name == f"smart-{ablation}":
                return Contestant("smart", ablation=ablation)
        policy, _, rule = name.partition("+")
        return Contestant(policy, rule or "match")


def under_rules(policies: Sequence[str], rules: Sequence[str]) -> tuple[str, ...]:
    """Names of every policy under each of the `rules` that may verify its trees; those that draw
    none go by `match` alone."""
    names: list[str] = []
    for policy in policies:
        legal = [rule for rule in rules if rule_objection(rule, policy) is None]
        if sampled_shape(policy) is None or not legal:
            legal = ["match"]
        names += [policy if rule == "match" else f"{policy}+{rule}" for rule in legal]
    return tuple(names)
