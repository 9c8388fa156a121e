"""Fingerprints, similarities and regimes, by hand."""

import math

import pytest
import torch

from leapbench.names import Regime
from leapbench.prediction.regime import RegimeDetector, classify, fingerprint, similarity

# Two probes of three tokens, width two; the second probe's last token is padding.
HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[1.0, 0.0], [3.0, 0.0], [0.0, 99.0]]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])

UNKNOWN, CHAOTIC, TRANSITION, STABLE = Regime


def test_pooling():
    masked = fingerprint(HIDDEN, MASK, "masked_mean")
    torch.testing.assert_close(masked, torch.tensor([[3.0, 4.0], [2.0, 0.0]]))
    with_padding = fingerprint(HIDDEN, MASK, "mean")
    torch.testing.assert_close(with_padding, torch.tensor([[3.0, 4.0], [4 / 3, 33.0]]))
    torch.testing.assert_close(fingerprint(HIDDEN, None, "masked_mean"), with_padding)
    tokens = fingerprint(HIDDEN, MASK, "tokens")
    assert tokens.tolist() == [[1, 2, 3, 4, 5, 6], [1, 0, 3, 0, 0, 99]]


def test_fingerprints_are_float32():
    for pooling in ("masked_mean", "mean", "tokens"):
        assert fingerprint(HIDDEN.bfloat16(), MASK, pooling).dtype == torch.float32


def test_cosines():
    a, b = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert similarity(a, b, "per_probe") == pytest.approx((1 + 0) / 2)
    assert similarity(a, b, "concatenated") == pytest.approx(3 / math.sqrt(10 * 2))
    assert similarity(a, 7 * a, "concatenated") == pytest.approx(1.0, abs=1e-15)
    assert similarity(a, -a, "per_probe") == pytest.approx(-1.0)


def test_similarities_near_one_keep_their_digits():
    """tau_high is 0.9995: float32's 6e-8 would do, bfloat16's 4e-3 would not."""
    a = torch.ones(1, 10_000)
    b = a.clone()
    b[0, 0] += 1.0
    wanted = 10_001 / math.sqrt(10_000 * 10_003)
    assert similarity(a, b, "concatenated") == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("s", "strict", "inclusive"),
    [
        (0.1, CHAOTIC, CHAOTIC), (0.25, TRANSITION, CHAOTIC), (0.5, TRANSITION, TRANSITION), (0.75, TRANSITION, STABLE),
        (0.9, STABLE, STABLE), (None, UNKNOWN, UNKNOWN),
    ],
)  # fmt: skip
def test_borders(s, strict, inclusive):
    assert classify(s, 0.25, 0.75, inclusive=False) == strict
    assert classify(s, 0.25, 0.75, inclusive=True) == inclusive


def turned(degrees):
    """Hidden states (1, 1, 2) at an angle."""
    angle = math.radians(degrees)
    return torch.tensor([[[math.cos(angle), math.sin(angle)]]])


def follow(detector, angles):
    return [detector.update(turned(angle), None) for angle in angles]


def test_regimes_along_a_run():
    detector = RegimeDetector(tau_low=math.cos(math.radians(60)), tau_high=math.cos(math.radians(20)), confirm=2)
    found = follow(detector, [0, 90, 120, 125, 130, 135, 180, 181])
    assert found[0] == (None, UNKNOWN, False)
    assert [regime for _, regime, _ in found] == [
        UNKNOWN, CHAOTIC, TRANSITION, STABLE, STABLE, STABLE, TRANSITION, STABLE,
    ]  # fmt: skip
    assert [confirmed for *_, confirmed in found] == [False, False, False, False, True, True, False, False]
    for (s, *_), moved in zip(found[1:], [90, 30, 5, 5, 5, 45, 1], strict=True):
        assert s == pytest.approx(math.cos(math.radians(moved)), abs=1e-6)


@pytest.mark.parametrize("confirm", [1, 3])
def test_confirmation_counts(confirm):
    detector = RegimeDetector(tau_low=0.1, tau_high=0.9, confirm=confirm)
    confirmed = [c for *_, c in follow(detector, [0, 1, 2, 3, 4])]
    assert confirmed == [False] + [i >= confirm for i in range(1, 5)]


def test_pooling_and_cosine_reach_the_detector():
    other = HIDDEN.clone()
    other[1, 2] = -other[1, 2]  # only the padding changes
    blind = RegimeDetector(tau_low=0.1, tau_high=0.9, pooling="masked_mean", cosine="per_probe")
    seeing = RegimeDetector(tau_low=0.1, tau_high=0.9, pooling="mean", cosine="per_probe")
    for detector in (blind, seeing):
        detector.update(HIDDEN, MASK)
    assert blind.update(other, MASK)[1] == STABLE
    s, regime, _ = seeing.update(other, MASK)
    assert regime == CHAOTIC  # (1 + cos of nearly opposite vectors) / 2
    assert s == pytest.approx((1 + ((4 / 3) ** 2 - 33**2) / ((4 / 3) ** 2 + 33**2)) / 2)


def test_a_detector_goes_on_from_its_state(tmp_path):
    def new():
        return RegimeDetector(tau_low=0.5, tau_high=0.9)

    angles = [0, 70, 75, 80, 85, 140]
    straight = follow(new(), angles)
    first, resumed = new(), new()
    begun = follow(first, angles[:3])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert begun + follow(resumed, angles[3:]) == straight
    assert straight[3][2] is True  # confirmed across the break
