"""The sampler against its definition, and the uniforms that drive it.

False alarms: a chi-square here fails a right sampler with probability 1e-6; seeds are fixed, so a
test that passes once passes always.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.sample import counter_uniform, sample, target_probs

Z_1E6 = 4.76
"""Standard normal quantile at 1 - 1e-6."""


def chi_square_limit(degrees: int) -> float:
    """Wilson and Hilferty's quantile at 1 - 1e-6; within 1 % from 5 degrees of freedom on."""
    return degrees * (1 - 2 / (9 * degrees) + Z_1E6 * math.sqrt(2 / (9 * degrees))) ** 3


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def plain_probs(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float = 0.0
) -> list[float]:
    """Definition, one row, plain Python: softmax(l / T), then min-p, top-k, top-p; normalised."""
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    probs = [w / sum(weights) for w in weights]
    probs = [p if p >= min_p * max(probs) else 0.0 for p in probs]
    order = sorted(range(len(probs)), key=lambda v: -probs[v])
    order = order[:top_k] if top_k else order
    kept, mass, total = [], 0.0, sum(probs[v] for v in order)
    for v in order:
        if mass >= top_p * total:
            break
        kept.append(v)
        mass += probs[v]
    return [probs[v] / mass if v in kept else 0.0 for v in range(len(probs))]


def row(value: float, count: int = 1) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float64)


min_ps = st.one_of(st.just(0.0), st.floats(0.0, 1.0))
params = st.tuples(st.floats(0.05, 2.0), st.floats(0.05, 1.0), st.integers(0, 12), min_ps)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 10_000), vocab=st.integers(1, 12), params=params)
def test_probabilities_equal_the_definition(
    seed: int, vocab: int, params: tuple[float, float, int, float]
) -> None:
    temperature, top_p, top_k, min_p = params
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3
    controls = (row(temperature), row(top_p), torch.tensor([top_k]), row(min_p))
    got = target_probs(logits[None], *controls)[0]
    expected = plain_probs(logits.tolist(), *params)
    assert (got / got.sum()).tolist() == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    params=params,
    uniform=st.one_of(st.floats(0.0, 1.0, exclude_max=True), st.just(1 - 2**-53), st.just(0.0)),
)
def test_the_token_is_the_inverse_of_the_distribution(
    seed: int, params: tuple[float, float, int, float], uniform: float
) -> None:
    temperature, top_p, top_k, min_p = params
    logits = torch.randn(10, generator=torch.Generator().manual_seed(seed)) * 3
    controls = (row(temperature), row(top_p), torch.tensor([top_k]), row(min_p))
    token = int(sample(logits[None], *controls, row(uniform))[0])
    probs = plain_probs(logits.tolist(), *params)
    below = sum(probs[:token])
    assert probs[token] > 0.0
    assert below - 1e-12 <= uniform <= below + probs[token] + 1e-12


def test_greedy_is_the_arg_max_whatever_the_uniform() -> None:
    logits = torch.randn(50, 17, generator=torch.Generator().manual_seed(0))
    controls = (row(0.0, 50), row(0.3, 50), torch.full((50,), 2), row(0.5, 50))
    got = sample(logits, *controls, torch.rand(50).double())
    assert torch.equal(got, logits.argmax(dim=-1))


@pytest.mark.parametrize("uniform", [1 - 2**-53, 1 - 2**-30, 0.999])
@pytest.mark.parametrize("tail", [1, 1_000])
def test_a_uniform_close_to_one_never_selects_an_impossible_token(
    uniform: float, tail: int
) -> None:
    """Impossible tokens at the end of the vocabulary are where rounding would land."""
    logits = torch.cat((torch.randn(40), torch.full((tail,), -torch.inf)))[None]
    for top_p, top_k in ((1.0, 0), (0.7, 0), (1.0, 3), (0.9, 5)):
        controls = (row(1.0), row(top_p), torch.tensor([top_k]), row(0.0))
        token = sample(logits, *controls, row(uniform))
        probs = target_probs(logits, *controls)[0]
        assert probs[int(token)] > 0


SMALLEST = 5e-324
"""Above zero; a logit divided by it is infinite."""


@pytest.mark.parametrize("temperature", [SMALLEST, 1e-310, 1e-200, 1e-39, 1e-9])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_as_temperature_vanishes_the_likeliest_token_is_left(
    temperature: float, uniform: float
) -> None:
    logits = torch.randn(20, 40, generator=torch.Generator().manual_seed(3))
    logits[0] = torch.finfo(torch.float32).min  # what a penalty next to zero makes of a row
    logits[0, 7] = torch.finfo(torch.float32).max
    for top_p, top_k, min_p in ((1.0, 0, 0.0), (SMALLEST, 3, 0.0), (0.9, 0, 1.0)):
        controls = (row(top_p, 20), torch.full((20,), top_k), row(min_p, 20), row(uniform, 20))
        got = sample(logits, row(temperature, 20), *controls)
        assert torch.equal(got, logits.argmax(dim=-1))


def test_the_smallest_top_p_still_keeps_a_token() -> None:
    controls = (row(1.0), row(SMALLEST), torch.tensor([1]), row(0.0))
    assert int(sample(torch.zeros(1, 9), *controls, row(0.5))) == 0


def test_a_row_does_not_depend_on_its_batch() -> None:
    """Rows that want no cut get none because a neighbour does, down to the last uniform."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(60, 30, generator=generator) * 12
    logits[0, 0], logits[0, 1] = -40.0, 0.0
    rng = np.random.default_rng(0)
    temperatures = torch.from_numpy(rng.choice([0.0, 0.5, 1.0, 1.7], 60))
    top_ps = torch.from_numpy(rng.choice([1.0, 1.0, 0.9, 0.3], 60))
    top_ks = torch.from_numpy(rng.choice([0, 0, 1, 7], 60))
    uniforms = torch.from_numpy(rng.random(60))
    min_ps = torch.from_numpy(rng.choice([0.0, 0.0, 0.1], 60))
    temperatures[0], top_ps[0], top_ks[0], min_ps[0], uniforms[0] = 1.0, 1.0, 0, 0.0, 0.0
    arguments = (logits, temperatures, top_ps, top_ks, min_ps, uniforms)
    together = sample(*arguments)
    alone = [int(sample(*(a[i : i + 1] for a in arguments))[0]) for i in range(60)]
    assert together.tolist() == alone
    both = (target_probs(*arguments[:5])[0], target_probs(*(a[:1] for a in arguments[:5]))[0])
    assert torch.equal(*both)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 6), (0.9, 8)])
def test_draws_follow_the_law(top_p: float, top_k: int) -> None:
    draws = 40_000
    logits = torch.randn(12, generator=torch.Generator().manual_seed(4)) * 1.5
    uniforms = torch.from_numpy(counter_uniform(np.full(draws, 9), np.arange(draws)))
    tokens = sample(
        logits.expand(draws, 12), row(0.9, draws), row(top_p, draws),
        torch.full((draws,), top_k), row(0.0, draws), uniforms,
    )  # fmt: skip
    expected = draws * np.asarray(plain_probs(logits.tolist(), 0.9, top_p, top_k))
    counts = np.bincount(tokens.numpy(), minlength=12)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    limit = chi_square_limit(int(possible.sum()) - 1)
    assert chi_square(counts[possible], expected[possible]) < limit
    # The control: the same draws do not pass for another temperature.
    other = draws * np.asarray(plain_probs(logits.tolist(), 1.0, top_p, top_k))[possible]
    assert chi_square(counts[possible], other) > limit
