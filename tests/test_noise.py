"""Random numbers as a function of a key: uniform, normal, independent between streams and keys, and repeatable."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tsde.noise import series_keys, standard_normal, uniform

NAMES = [f"patient {i}" for i in range(200)]
KEYS = series_keys(NAMES, seed=0)


def flat(x: Tensor) -> np.ndarray:
    return x.double().flatten().numpy()


@pytest.mark.parametrize("stream", [0, 1, 1000])
def test_uniform_is_uniform(stream: int) -> None:
    u = uniform(KEYS, (250,), stream)
    assert u.shape == (200, 250) and u.dtype == torch.float64
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(flat(u), "uniform").pvalue > 1e-3
    assert stats.chisquare(np.histogram(flat(u), 64, (0, 1))[0]).pvalue > 1e-3


def test_every_low_bit_is_fair() -> None:
    """A weak mixer shows in the last bits first."""
    bits = (flat(uniform(KEYS, (250,))) * 2.0**52).astype(np.int64)
    shares = np.array([((bits >> bit) & 1).mean() for bit in range(52)])
    assert np.abs(shares - 0.5).max() < 4.5 * 0.5 / np.sqrt(bits.size)


def test_standard_normal_is_standard_normal() -> None:
    x = standard_normal(KEYS, (25, 10))
    assert x.shape == (200, 25, 10) and x.dtype == torch.float32 and torch.isfinite(x).all()
    assert stats.kstest(flat(x), "norm").pvalue > 1e-3
    assert abs(flat(x).mean()) < 4 / np.sqrt(x.numel())
    assert abs(flat(x).var() - 1) < 4 * np.sqrt(2 / x.numel())


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(flat(a), flat(b))[0, 1])


def test_streams_are_independent() -> None:
    draws = [standard_normal(KEYS, (250,), stream) for stream in (0, 1, 2, 3, 255, 256)]
    for a, b in itertools.combinations(draws, 2):
        assert abs(correlation(a, b)) < 4.5 / np.sqrt(a.numel())
        assert abs(correlation(a[:, 1:], b[:, :-1])) < 4.5 / np.sqrt(a.numel())  # no stream is another one delayed
        assert not np.isin(flat(a), flat(b)).all()


def test_positions_and_keys_are_independent() -> None:
    x = standard_normal(KEYS, (250,))
    bound = 4.5 / np.sqrt(x.numel())
    for lag in (1, 2, 7):
        assert abs(correlation(x[:, lag:], x[:, :-lag])) < bound
    assert abs(correlation(x[1:], x[:-1])) < bound


def test_neighbouring_keys_give_unlike_numbers() -> None:
    """Keys are digests, but nothing may go wrong when they are consecutive integers or extreme ones."""
    keys = torch.cat([torch.arange(-100, 100), torch.tensor([2**63 - 1, -(2**63)])])
    u = uniform(keys, (100,))
    assert len(u.unique()) == u.numel()
    assert stats.kstest(flat(u), "uniform").pvalue > 1e-3
    assert abs(correlation(u[1:200], u[:199])) < 4.5 / np.sqrt(199 * 100)


def test_numbers_belong_to_their_key_alone() -> None:
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(1))
    whole = standard_normal(KEYS, (4, 5), 2)
    assert torch.equal(standard_normal(KEYS[order], (4, 5), 2), whole[order])
    assert torch.equal(standard_normal(KEYS[17:18], (4, 5), 2), whole[17:18])


def test_more_numbers_start_with_the_same_ones() -> None:
    assert torch.equal(uniform(KEYS, (100,))[:, :40], uniform(KEYS, (40,)))
    assert torch.equal(uniform(KEYS, (8, 5)).flatten(1), uniform(KEYS, (40,)))


def test_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = standard_normal(KEYS, (3,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(standard_normal(KEYS, (3,)), first)


def test_keys_follow_from_name_and_seed() -> None:
    assert KEYS.dtype == torch.int64 and len(KEYS.unique()) == len(NAMES)
    assert torch.equal(series_keys(reversed(NAMES), 0), KEYS.flip(0))
    assert not torch.isin(series_keys(NAMES, 1), KEYS).any()
    assert series_keys([], 0).shape == (0,)


def split_mix(x: int) -> int:
    """The finaliser of SplitMix64 on Python's unbounded integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def bits_of(key: int, count: int, stream: int) -> list[int]:
    golden = 0x9E3779B97F4A7C15
    start = split_mix(split_mix((key + (stream + 1) * golden) % 2**64))
    return [split_mix((start + counter * golden) % 2**64) for counter in range(1, count + 1)]


@pytest.mark.parametrize("stream", [0, 5])
def test_the_generator_is_split_mix(stream: int) -> None:
    expected = [[((b >> 12) + 0.5) / 2**52 for b in bits_of(key, 7, stream)] for key in KEYS[:5].tolist()]
    assert uniform(KEYS[:5], (7,), stream).tolist() == expected


def test_normals_are_box_and_mullers() -> None:
    """Two of each word, the cosines before the sines; of an odd number the last one falls away."""
    bits = np.array([bits_of(key, 12, 5) for key in KEYS[:20].tolist()], np.uint64).reshape(20, 3, 4)
    radius = np.sqrt(-2 * np.log(((bits & 0x7FFFFFFF) + 0.5) / 2**31))
    angle = (bits >> 32).astype(np.uint32).view(np.int32) * (np.pi / 2**31)
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], -1)
    np.testing.assert_allclose(standard_normal(KEYS[:20], (3, 8), 5), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(standard_normal(KEYS[:20], (3, 7), 5), expected[..., :7], rtol=1e-4, atol=1e-5)


def test_keys_are_the_same_on_every_machine_and_in_every_version() -> None:
    """A change of these numbers changes every sampled forecast that anybody has kept."""
    keys = [1674081855184152700, 349285957137428458, 1336291122100405219]
    assert series_keys(["a", "é", ""], 7).tolist() == keys
