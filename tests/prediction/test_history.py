"""The ring: what it keeps, what it forgets, and that it stops allocating."""

from types import SimpleNamespace

import pytest
import torch

import twins
from leapbench.prediction.history import Ring

N = 6
LAYOUT = twins.layout_of({"w": (2, 3)})


def factor_at(position):
    return 0.1 / (position + 1)


def moments(step):
    """A stand-in for Moments whose values tell the step."""
    return SimpleNamespace(exp_avg=torch.full((N,), step + 0.25), exp_avg_sq=torch.full((N,), step + 0.5), updates=step)


def filled(steps, with_moments=False, **options):
    ring = Ring(interval=10, layout=LAYOUT, factor_at=factor_at, adam=(twins.ADAM,), **options)
    for step in steps:
        ring.push(step, step + 3, torch.full((N,), float(step)), moments(step) if with_moments else None)
    return ring


def test_the_last_snapshots_are_kept_oldest_first():
    ring = filled([10, 20, 30, 40, 50], capacity=3)
    history = ring.history()
    assert len(ring) == 3
    assert history.steps == (30, 40, 50)
    assert [s.position for s in history.snapshots] == [33, 43, 53]
    assert [float(s.weights[0]) for s in history.snapshots] == [30, 40, 50]
    assert history.now is history.snapshots[-1]
    assert (history.layout, history.factor_at, history.adam) == (LAYOUT, factor_at, (twins.ADAM,))


def test_snapshots_are_copies_of_the_live_weights():
    ring, live = filled([], capacity=2), torch.zeros(N)
    ring.push(10, 10, live)
    live.fill_(5.0)
    assert ring.history().now.weights.abs().sum() == 0


@pytest.mark.parametrize("moments_capacity", [1, 2, 3, 4])
def test_a_full_ring_allocates_nothing(moments_capacity):
    ring = filled([10, 20, 30, 40], capacity=4, moments_capacity=moments_capacity, with_moments=True)

    def addresses():
        kept = ring.history().snapshots
        return (
            {s.weights.data_ptr() for s in kept},
            {v.data_ptr() for s in kept for v in (s.exp_avg, s.exp_avg_sq) if v is not None},
        )

    before = addresses()
    assert [len(group) for group in before] == [4, 2 * moments_capacity]
    for step in (50, 60, 70, 80, 90):
        ring.push(step, step, torch.full((N,), float(step)), moments(step))
        assert addresses() == before
    assert [float(s.weights[0]) for s in ring.history().snapshots] == [60, 70, 80, 90]


def test_only_the_newest_snapshots_carry_moments():
    ring = filled([10, 20, 30, 40, 50], capacity=4, moments_capacity=2, with_moments=True)
    older, newer = ring.history().snapshots[:2], ring.history().snapshots[2:]
    assert all(s.exp_avg is None and s.exp_avg_sq is None for s in older)
    assert [(float(s.exp_avg[0]), float(s.exp_avg_sq[0]), s.updates) for s in newer] == [
        (40.25, 40.5, 40), (50.25, 50.5, 50),
    ]  # fmt: skip
    bare = filled([10, 20], capacity=4, moments_capacity=0, with_moments=True)
    assert all(s.exp_avg is None and s.updates == 0 for s in bare.history().snapshots)


def test_history_until_a_step():
    ring = filled([10, 20, 30, 40], capacity=3)
    assert ring.history(until=30).steps == (20, 30)
    assert ring.history(until=40).steps == (20, 30, 40)
    for gone in (10, 25, 50):
        with pytest.raises(ValueError, match=f"step {gone} is no longer kept"):
            ring.history(until=gone)


@pytest.mark.parametrize("step", [20, 29, 31, 40, 10])
def test_uneven_snapshots_are_refused(step):
    ring = filled([10, 20], capacity=2)
    with pytest.raises(ValueError, match=f"snapshot at step {step}, but the last was at 20, interval 10"):
        ring.push(step, step, torch.zeros(N))
    assert ring.history().steps == (10, 20)


def test_snapshots_are_stored_in_the_dtype_asked_for():
    ring = filled([], capacity=2, moments_capacity=1, weights_dtype=torch.float16, moments_dtype=torch.bfloat16)
    tiny = SimpleNamespace(exp_avg=torch.full((N,), 1.01), exp_avg_sq=torch.full((N,), 1e-9), updates=1)
    for step in (10, 20, 30):  # the third goes into used memory
        ring.push(step, step, torch.full((N,), 1 / 3), tiny)
    now = ring.history().now
    assert (now.weights.dtype, now.exp_avg.dtype, now.exp_avg_sq.dtype) == (
        torch.float16,
        torch.bfloat16,
        torch.bfloat16,
    )
    assert float(now.weights[0]) == float(torch.tensor(1 / 3).half()) != 1 / 3
    assert float(now.exp_avg_sq[0]) > 0
    half = filled([], capacity=2, moments_capacity=1, moments_dtype=torch.float16)
    half.push(10, 10, torch.zeros(N), tiny)
    assert float(half.history().now.exp_avg_sq[0]) == 0  # what float16 does to second moments


def test_the_newest_of_a_history():
    history = twins.random_history(0)
    assert history.last(2).steps == (50, 60)
    assert history.last(6).steps == history.steps
    with pytest.raises(ValueError, match="7 snapshots wanted, 6 kept"):
        history.last(7)


def test_a_history_extended_by_a_prediction():
    history = twins.random_history(0)
    predicted = torch.ones_like(history.now.weights)
    longer = history.extended(predicted, 25)
    assert longer.steps == (*history.steps, 85)
    assert longer.now.position == history.now.position + 25
    assert longer.now.weights is predicted
    assert longer.now.exp_avg is history.now.exp_avg
    assert history.steps == (10, 20, 30, 40, 50, 60)


def test_candidates_get_scratch_once_and_then_fresh_float32():
    history = twins.random_history(0, weights_dtype=torch.float16)
    scratch = torch.empty(history.layout.size)
    history.scratch.append(scratch)
    assert history.empty_vector() is scratch
    fresh = history.empty_vector()
    assert fresh is not scratch
    assert (fresh.dtype, fresh.shape) == (torch.float32, scratch.shape)


def test_a_ring_goes_on_from_its_state(tmp_path):
    straight = filled(range(10, 80, 10), capacity=3, moments_capacity=2, with_moments=True)
    first = filled(range(10, 50, 10), capacity=3, moments_capacity=2, with_moments=True)
    torch.save(first.state_dict(), tmp_path / "ring.pt")
    resumed = filled([], capacity=3, moments_capacity=2)
    resumed.load_state_dict(torch.load(tmp_path / "ring.pt", weights_only=True), torch.device("cpu"))
    with pytest.raises(ValueError, match="the last was at 40"):
        resumed.push(60, 60, torch.zeros(N))
    for step in range(50, 80, 10):
        resumed.push(step, step + 3, torch.full((N,), float(step)), moments(step))
    for mine, theirs in zip(resumed.state_dict(), straight.state_dict(), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert torch.equal(value, theirs[key]) if torch.is_tensor(value) else value == theirs[key]


def test_a_rounded_history_is_what_a_ring_of_those_dtypes_keeps():
    wide, narrow = (
        filled([], capacity=3, moments_capacity=2, weights_dtype=weights, moments_dtype=moments)
        for weights, moments in ((torch.float32, torch.float32), (torch.float16, torch.bfloat16))
    )
    for step in (10, 20, 30, 40):
        scale = SimpleNamespace(exp_avg=torch.full((N,), step / 3), exp_avg_sq=torch.full((N,), 1e-9), updates=step)
        for ring in (wide, narrow):
            ring.push(step, step, torch.full((N,), step / 7), scale)
    rounded = wide.history().rounded(torch.float16, torch.bfloat16)
    for ours, kept in zip(rounded.snapshots, narrow.history().snapshots, strict=True):
        for name, value in vars(kept).items():
            same = (
                torch.equal(vars(ours)[name], value) if isinstance(value, torch.Tensor) else vars(ours)[name] == value
            )
            assert same, name
    assert wide.history().rounded(torch.float32, torch.float32).now.weights is wide.history().now.weights
