"""Elimination against brute force: a fresh least-squares fit for every set of units that could stay."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.calibration.elimination import Curve, Layer, eliminate
from exporter.calibration.moments import Moments

DAMPING = 1e-3


class Problem:
    """A reader with random inputs, correlated as activations are; ``units`` [groups, K] says whose columns they are."""

    def __init__(self, units, *, outputs=3, rows=200, seed=0, offset=0.0, x=None, w=None):
        rng = np.random.default_rng(seed)
        self.units = np.array(units)
        groups, k = self.units.shape
        mixed = rng.standard_normal((groups, rows, k)) @ rng.standard_normal((groups, k, k))
        self.x = np.asarray(mixed + offset if x is None else x, np.float32)
        weights = rng.standard_normal((groups, k, outputs)) if w is None else w
        noise = 0.1 * rng.standard_normal((groups, rows, weights.shape[2]))
        self.y = np.asarray(self.x @ weights + noise + offset, np.float32)
        moments = Moments()
        moments.add((self.x[:, : rows // 3], self.y[:, : rows // 3]))
        moments.add((self.x[:, rows // 3 :], self.y[:, rows // 3 :]))
        self.moments = moments.centred(intercept=True)

    def layer(self):
        return Layer(self.moments, self.units, DAMPING)

    def fit(self, gone):
        """Relative objective (error plus ridge) and relative error of a fresh fit without some units, in float64."""
        objective = error = energy = 0.0
        ridge = DAMPING * np.mean([np.var(x, 0, dtype=np.float64).mean() for x in self.x])
        for g, (x, y) in enumerate(zip(self.x.astype(np.float64), self.y.astype(np.float64), strict=True)):
            x, y = x - x.mean(0), y - y.mean(0)
            x = x[:, ~np.isin(self.units[g], gone)]
            w = np.linalg.solve(x.T @ x / len(x) + ridge * np.eye(x.shape[1]), x.T @ y / len(x))
            residual = np.square(y - x @ w).sum() / len(x)
            objective += residual + ridge * np.square(w).sum()
            error += residual
            energy += np.square(y).sum() / len(x)
        return objective / energy, error / energy


ONE = [[0, 1, 2, 3, 4, 5]]
CASES = {
    "one-column-each": [Problem(ONE)],
    "two-readers": [Problem(ONE), Problem([[3, 1, 0, 5, 4, 2]], outputs=5, seed=1)],
    "several-columns": [Problem([[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]])],
    "interleaved": [Problem([[0, 1, 2, 3, 0, 1, 2, 3]])],
    "uneven": [Problem([[0, 0, 1, 2, 2, 2, 3]])],
    "others-stay": [Problem([[0, -1, 1, 2, -1, 3]])],
    "groups": [Problem([[0, 1, 2], [3, 4, 5]])],
    "units-in-all-groups": [Problem([[0, 1, 2, 3], [3, 2, 1, 0]])],
    "large-means": [Problem(ONE, offset=20.0)],
    "mixed": [Problem([[0, 0, 1, 1], [2, 2, 3, 3]]), Problem([[3, 2, 1, 0, -1]], seed=3)],
}


@pytest.fixture(params=CASES)
def problems(request):
    return CASES[request.param]


def test_the_loss_of_a_unit_is_what_a_fit_without_it_loses(problems):
    """At the start and after others have gone."""
    layers = [p.layer() for p in problems]
    width = max(p.units.max() for p in problems) + 1
    gone: list[int] = []
    for unit in range(width - 1):
        left = [u for u in range(width) if u not in gone]
        losses = np.asarray(sum(layer.losses(left) for layer in layers))
        want = [sum(p.fit([*gone, u])[0] - p.fit(gone)[0] for p in problems) for u in left]
        assert losses == pytest.approx(want, rel=1e-3, abs=1e-6)
        for layer in layers:
            layer.remove([unit])
        gone.append(unit)


def test_damage_is_the_error_of_a_fresh_fit_on_what_stays(problems):
    width = max(p.units.max() for p in problems) + 1
    curve = eliminate([p.layer() for p in problems], width)
    assert sorted(curve.order) == list(range(width))
    floor = sum(p.fit([])[1] for p in problems)
    for kept in range(1, width + 1):
        gone = np.setdiff1d(np.arange(width), curve.kept(kept))
        want = sum(p.fit(gone)[1] for p in problems) - floor
        # the layer counts the ridge as error: no more than the damping
        assert curve.damage[kept - 1] == pytest.approx(want, abs=2 * DAMPING * len(problems))
    assert curve.damage[-1] == 0
    assert curve.damage[0] > 0.05


def test_each_step_takes_the_unit_of_least_loss(problems):
    width = max(p.units.max() for p in problems) + 1
    order = eliminate([p.layer() for p in problems], width).order
    for k in range(width - 1):
        gone = list(order[:k])
        want = {u: sum(p.fit([*gone, u])[0] for p in problems) for u in range(width) if u not in gone}
        assert want[order[k]] == pytest.approx(min(want.values()), rel=1e-3)


def test_several_at_once_are_as_if_one_by_one():
    problem = Problem([[0, 0, 1, 2, 2, 3], [4, 5, 5, 3, 0, -1]])
    together, single = problem.layer(), problem.layer()
    together.remove([0, 3, 5])
    for unit in (5, 0, 3):
        single.remove([unit])
    assert together.error == pytest.approx(single.error, rel=1e-6)
    assert together.weights == pytest.approx(single.weights, abs=1e-9)
    assert together.losses([1, 2, 4]) == pytest.approx(single.losses([1, 2, 4]))


def test_a_part_says_what_the_whole_would():
    problem = Problem([[0, 0, 1, 2, 2, 3], [4, 5, 5, 3, 0, -1]])
    whole = problem.layer()
    part = whole.part([0, 3, 4])
    for layer in (whole, part):
        layer.remove([3])
    assert part.losses([0, 4]) == pytest.approx(whole.losses([0, 4]))


@pytest.mark.parametrize("width", [6, 200])
def test_of_two_alike_one_goes_first_and_the_other_stays(width):
    """However large the weights of both; also where several go in one step."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 4 * width, width))
    w = rng.uniform(0.5, 1, (1, width, 4))
    pairs = [(2, 5), *([(10, 11), (40, 140), (7, 199)] if width > 100 else [])]
    for a, b in pairs:
        x[..., b] = x[..., a]
        w[:, [a, b]] = 9
    curve = eliminate([Problem([range(width)], x=x, w=w, rows=4 * width).layer()], width)
    first = curve.order[: len(pairs)].tolist()
    assert all((a in first) != (b in first) for a, b in pairs)
    assert curve.damage[-1 - len(pairs)] < 1e-3
    last = set(curve.order[-len(pairs) :].tolist())
    assert all((a in last) != (b in last) for a, b in pairs)  # what is left of them carries most of the output


def test_damage_is_monotone_and_the_units_are_ranked_by_it():
    width = 150
    curve = eliminate([Problem([range(width)], rows=600, seed=s).layer() for s in range(2)], width)
    assert (np.diff(curve.damage) <= 0).all()
    importance = curve.importance()
    assert (np.argsort(importance) == curve.order).all()
    for kept in (1, 10, 100, 149):
        going = curve.order[width - kept - 1]
        assert importance[going] == pytest.approx(curve.damage[kept - 1], rel=1e-6, abs=1e-6)


def test_a_dead_group_has_a_curve():
    problem = Problem([[0, 1, 2]], x=np.zeros((1, 50, 3)), rows=50, w=np.zeros((1, 3, 2)))
    problem.moments.yy[:] = 0
    problem.moments.xy[:] = 0
    curve = eliminate([problem.layer()], 3)
    assert (curve.damage == 0).all()
    assert len(set(curve.importance())) == 3


def test_the_looks_come_in_turn_and_see_all_columns():
    """Also after the layers have been reduced to what is left of them."""
    width, seen = 130, []
    problem = Problem([range(width)], rows=600)
    curve = eliminate([problem.layer()], width, (65, 16), lambda at, layers: seen.append((at, layers[0].whole())))
    assert [at for at, _ in seen] == [65, 16]
    for at, weights in seen:
        kept = np.flatnonzero(np.abs(weights).sum((0, 2)))
        assert weights.shape == (1, width, 3)
        assert at - 2 <= len(kept) <= at
        assert set(kept) == set(curve.kept(len(kept)))
        error = problem.moments.error(weights) / problem.moments.yy.sum()
        assert error == pytest.approx(curve.damage[len(kept) - 1] + problem.layer().damage(), rel=0.02)  # and ridge


def test_where_rows_are_few_others_judge():
    """Twenty rows are fitted by any twenty of sixty columns; what that is worth other rows tell."""
    rng = np.random.default_rng(3)
    w, units, moments = rng.standard_normal((1, 60, 4)), np.arange(60)[None], []
    for rows in (20, 4000):
        x = rng.standard_normal((1, rows, 60)).astype(np.float32)
        moments.append(Moments())
        moments[-1].add((x, np.asarray(x @ w, np.float32)))
    few, many = (m.centred(intercept=False) for m in moments)
    blind = eliminate([Layer(few, units, DAMPING, w)], 60)
    seen = eliminate([Layer(few, units, DAMPING, w, many)], 60)
    assert seen.order.tolist() == blind.order.tolist()
    assert blind.damage[24] < 0.02
    assert seen.damage[24] > 0.3
    assert (np.diff(seen.damage) <= 0).all()


def test_kept_is_the_end_of_the_order():
    curve = Curve(np.array([2, 0, 3, 1]), np.array([3.0, 2.0, 1.0, 0.0]))
    assert curve.kept(2).tolist() == [1, 3]
    assert curve.importance() == pytest.approx([2, 3, 1, 3], abs=1e-6)
