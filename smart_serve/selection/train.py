"""From roots to a selector, in two steps.

1. A network that says how many tokens a shape will bring at a root, from the one outcome that was
   seen of each: E(c, a).
2. The selector π(a | c), by the objective of "Dynamic Delayed Tree Expansion" (arXiv 2602.16994):

       −log(TPS_π / TPS_base) + λ · mean over the worst share of roots of (1 − tps_π / TPS_base)+²
       TPS_π = Σ_c Σ_a π E / Σ_c Σ_a π T

   where the base is the best static shape at the same prices. Their labels come from branching
   probabilities, and so leave out the rules that have none; outcomes do not. They do not tell λ and
   the share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from smart_serve.selection.prices import NUM_PRICES, Market, Prices
from smart_serve.selection.roots import Roots
from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.selector import FEATURES, Action, Layers, Selector, all_actions
from smart_serve.speculation.tree import FloatArray

HELD_OUT = 0.4
"""Of the roots: enough for a second opinion of what shapes bring."""
VALUE_WIDTH, SELECTOR_WIDTH = 64, 32
VALUE_STEPS, SELECTOR_STEPS = 1_500, 1_500
BATCH_ROOTS = 1_024
VALUE_DECAY = 0.1
LEARNING_RATE = 2e-3
WORST_SHARE, WORST_WEIGHT = 0.1, 1.0
KEPT_ACTIONS = 24
"""Of all shapes, those that are the best at some root and prices most often."""
STATIC_BATCH = 4
"""At whose prices the shape for unknown roots is the best."""
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Verdict:
    """On held-out roots, at the measured prices, by values that were learnt from those roots alone:
    the selector's own would flatter what was chosen by them."""

    gains: dict[int, float]
    """By batch: tokens per second over the best static shape's."""
    statics: dict[int, Action]
    explained: float
    """Share of the variance of what was accepted that the values explain."""


def train(
    roots: Roots, table: CostTable, drafter: Curve, *, seed: int, told: Told
) -> tuple[Selector, Verdict]:
    """Deterministic for given roots, tables and seed, up to the order of sums."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(roots.accepted))
    num_held = int(HELD_OUT * len(order))
    held, kept = (roots.only(part) for part in (order[:num_held], order[num_held:]))
    context = float(np.exp(np.median(roots.features[:, FEATURES.index("log_context")])))
    market = Market(table, drafter, context)
    center, scale = kept.features.mean(axis=0), kept.features.std(axis=0) + 1e-3
    center[-NUM_PRICES:], scale[-NUM_PRICES:] = market.moments()
    values, second = (_Values(center, scale, rng) for _ in range(2))
    for one, part in ((values, kept), (second, held)):
        _fit_values(one, part, rng, told)
    actions = _best_actions(values.table(kept.features, all_actions()), market, rng)
    worth = values.table(kept.features, actions)
    inputs = (kept.features - center) / scale
    net = _fit_selector(inputs, worth, market, actions, (center, scale), rng, told)
    static = int(_tokens_per_ms(worth, market.prices(actions, STATIC_BATCH)).argmax())
    selector = Selector(actions, actions[static], center, scale, net)
    return selector, _judge(selector, second, values.explained(held), held, market)


def _fit_selector(
    inputs: FloatArray,
    worth: torch.Tensor,
    market: Market,
    actions: tuple[Action, ...],
    moments: tuple[FloatArray, FloatArray],
    rng: np.random.Generator,
    told: Told,
) -> Layers:
    net = _network((len(FEATURES), SELECTOR_WIDTH, len(actions)), rng)
    center, scale = (moment[-NUM_PRICES:] for moment in moments)
    optimiser = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    for step in range(SELECTOR_STEPS):
        here = market.elsewhere(actions, rng)
        picked = rng.integers(0, len(inputs), BATCH_ROOTS)
        x = inputs[picked]
        x[:, -NUM_PRICES:] = (here.features - center) / scale
        policy = net(torch.from_numpy(x).float()).softmax(dim=-1)
        loss = objective(policy, worth[torch.from_numpy(picked)], torch.from_numpy(here.step_ms))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        told("training the selector", step + 1, SELECTOR_STEPS)
    linear = [part for part in net if isinstance(part, nn.Linear)]
    return tuple(
        (one.weight.detach().double().numpy().T, one.bias.detach().double().numpy())
        for one in linear
    )


def objective(policy: torch.Tensor, tokens: torch.Tensor, step_ms: torch.Tensor) -> torch.Tensor:
    """The loss of a policy [N, A] at roots where shapes bring `tokens` [N, A] for `step_ms` [A]."""
    base = (tokens.sum(dim=0) / (len(tokens) * step_ms)).max()
    brought, spent = (policy * tokens).sum(dim=1), policy.double() @ step_ms
    total = brought.sum() / spent.sum()
    shortfall = (1.0 - brought / spent / base).clamp(min=0.0)
    worst = shortfall.topk(max(1, int(WORST_SHARE * len(shortfall)))).values
    return -torch.log(total / base) + WORST_WEIGHT * (worst**2).mean()


class _Values(nn.Module):
    """Tokens of a step, by root and shape: the bonus token, and a share of the tree's depth."""

    def __init__(self, center: FloatArray, scale: FloatArray, rng: np.random.Generator) -> None:
        super().__init__()
        self._center, self._scale = center[:-NUM_PRICES], scale[:-NUM_PRICES]
        self.net = _network((len(self._center) + 4, VALUE_WIDTH, VALUE_WIDTH, 1), rng)

    def forward(self, features: torch.Tensor, shapes: torch.Tensor) -> torch.Tensor:
        depth = shapes[:, 1] + shapes[:, 2]
        scaled = torch.cat((shapes, depth[:, None]), dim=1) / 4.0 - 1.0
        share = self.net(torch.cat((features, scaled), dim=1)).squeeze(1).sigmoid()
        tokens: torch.Tensor = 1.0 + depth * share
        return tokens

    def inputs(self, features: FloatArray) -> torch.Tensor:
        return torch.from_numpy((features[:, :-NUM_PRICES] - self._center) / self._scale).float()

    @torch.no_grad()
    def explained(self, roots: Roots) -> float:
        """Share of the variance of what was accepted at these roots."""
        shapes = torch.from_numpy(roots.shapes).float()
        missed = self(self.inputs(roots.features), shapes).numpy() - 1.0 - roots.accepted
        return float(1.0 - np.mean(missed**2) / np.var(roots.accepted))

    @torch.no_grad()
    def table(self, features: FloatArray, actions: tuple[Action, ...]) -> torch.Tensor:
        """[N, A]"""
        inputs = self.inputs(features)
        shapes = torch.tensor(actions).float()
        columns = [self(inputs, shape.expand(len(inputs), 3)) for shape in shapes]
        return torch.stack(columns, dim=1).double()


def _network(sizes: tuple[int, ...], rng: np.random.Generator) -> nn.Sequential:
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(linear.bias)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _fit_values(values: _Values, roots: Roots, rng: np.random.Generator, told: Told) -> None:
    features, shapes = values.inputs(roots.features), torch.from_numpy(roots.shapes).float()
    tokens = torch.from_numpy(roots.accepted + 1).float()
    # Outcomes are noisy: without decay the network learns them by heart.
    optimiser = torch.optim.AdamW(values.parameters(), LEARNING_RATE, weight_decay=VALUE_DECAY)
    for step in range(VALUE_STEPS):
        picked = torch.from_numpy(rng.integers(0, len(tokens), BATCH_ROOTS))
        loss = ((values(features[picked], shapes[picked]) - tokens[picked]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        told("learning what shapes bring", step + 1, VALUE_STEPS)


def _tokens_per_ms(worth: torch.Tensor, here: Prices) -> FloatArray:
    """Of every shape, were it the only one. [A]"""
    rates: FloatArray = worth.mean(dim=0).numpy() / here.step_ms
    return rates


def _best_actions(
    worth: torch.Tensor, market: Market, rng: np.random.Generator
) -> tuple[Action, ...]:
    actions = all_actions()
    wins = np.zeros(len(actions))
    for _ in range(64):
        here = market.elsewhere(actions, rng)
        some = worth[torch.from_numpy(rng.integers(0, len(worth), 256))].numpy()
        # Each root at the going rate: tokens beyond those that its time could have brought.
        rate = _tokens_per_ms(worth, here).max()
        best = (some - rate * here.step_ms).argmax(axis=1)
        wins += np.bincount(best, minlength=len(actions))
        wins[_tokens_per_ms(worth, here).argmax()] += len(some)
    chosen = np.sort(np.argsort(-wins, kind="stable")[:KEPT_ACTIONS])
    return tuple(actions[i] for i in chosen.tolist())


def _judge(
    selector: Selector, values: _Values, explained: float, held: Roots, market: Market
) -> Verdict:
    gains, statics = {}, {}
    worth = values.table(held.features, selector.actions).numpy()
    index = {action: i for i, action in enumerate(selector.actions)}
    for batch in (1, 4, 16):
        here = market.prices(selector.actions, batch)
        features = held.features.copy()
        features[:, -NUM_PRICES:] = here.features
        chosen = [index[tuple(row)] for row in selector.choose(features).tolist()]
        brought = worth[np.arange(len(chosen)), chosen].sum()
        static = worth.mean(axis=0) / here.step_ms
        gains[batch] = float(brought / here.step_ms[chosen].sum() / static.max())
        statics[batch] = selector.actions[int(static.argmax())]
    return Verdict(gains, statics, explained)
