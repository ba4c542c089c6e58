"""Efficiencies of a cluster from measured steps: two at most, and never one per step.

What is fitted is a share of a peak that every step has in common: that of the matrix products'
format, and beside it one of memory, NVLink or network, if the steps depend on it in another way
than on the first. Both keep within bounds, by default half and double of what the cluster's file
says, and never above the peak: where a fit ends at its bound, something else is wrong.

The misfit of a step is the logarithm of its predicted over its measured time. The sum of squares is
made least by Gauss-Newton; in a box of two unknowns each linear problem is solved by turns, one
unknown after the other. That is short enough to need no library of optimisation: importing scipy
takes longer than a plan.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import figure_text
from dsv3_plugin.planner.calibration.measured import Measured
from dsv3_plugin.planner.cluster import LEAST_SHARE, Cluster
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps

Factors = dict[str, float]
"""By what shares are multiplied; those that are not named stay."""
Predict = Callable[[Measured, Cluster], float]
"""Seconds that a measured step would take on a cluster."""


def predict(row: Measured, cluster: Cluster) -> float:
    """Seconds of such a step, as a plan has them."""
    setting = Setting.of(row.recipe, cluster, cluster.machine)
    return RecipeSteps(row.recipe, setting, cluster).step(row.batch).seconds


SECOND = ("memory", "nvlink", "network")
"""Shares of which one may be fitted beside that of the matrix products."""
FEWEST_ROWS_FOR_TWO = 3
"""With fewer, two constants meet every step, and say nothing."""
_DIFFERENCE = 0.01
"""Of a share's logarithm, for derivatives."""
_CONVERGED = 1e-4
"""Of a share's logarithm."""
_MOST_ITERATIONS, _TURNS = 20, 200
_FAR_OFF = 10.0
"""Times the prediction, or less than it by as much: a step that is not what its row says."""
_INDEPENDENT = 0.02
"""Change of a step's time, per unit of a share's logarithm, that the first share could not imitate.
Below it a fit follows the noise of the steps: measured ones scatter by a few per cent."""


@dataclass(frozen=True)
class Constant:
    """A fitted share.

    Attributes:
        name: its key below `efficiency` in a cluster's file.
        before: what the file says.
        value: what fits best.
        low, high: its bounds.
    """

    name: str
    before: float
    value: float
    low: float
    high: float

    @property
    def at_bound(self) -> bool:
        """Whether it would go on."""
        return min(self.value / self.low, self.high / self.value) < 1.001


@dataclass(frozen=True)
class Residual:
    """A measured step and what is predicted of it.

    Attributes:
        step: the step.
        before: seconds predicted by the cluster's file.
        predicted: seconds predicted by the calibrated cluster.
    """

    step: Measured
    before: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.step.seconds - 1


@dataclass(frozen=True)
class Calibration:
    """A cluster as measured steps have it.

    Attributes:
        cluster: with the fitted shares, whose sources say so.
        constants: those shares, one or two.
        factors: by what each is multiplied.
        residuals: each step.
        notes: sentences on what could not be fitted, or looks wrong.
    """

    cluster: Cluster
    constants: tuple[Constant, ...]
    factors: Factors
    residuals: tuple[Residual, ...]
    notes: tuple[str, ...]


def calibrate(
    cluster: Cluster,
    rows: Sequence[Measured],
    predict: Predict = predict,
    names: Sequence[str] = (),
    most: float = 2.0,
) -> Calibration:
    """A cluster whose shares meet measured steps as well as two constants can.

    Args:
        cluster: as its file has it.
        rows: measured steps, on devices whose files err alike: a share of each row's own cluster is
            multiplied by what its share of `cluster` is.
        predict: seconds of a step on a cluster.
        names: the shares to be fitted; by default those that the rows say something of.
        most: by how much a share may be multiplied, or divided.

    Raises:
        UserError: a row computes in a format that its cluster does not have, or takes another time
            than any efficiency could explain.
    """
    for row in rows:
        if _share(row.cluster, _products(row)) is None:
            raise UserError(
                f"'{row.name}' computes in FP8, which {row.cluster.gpu} does not: name the recipe "
                "and the cluster of what was measured."
            )

    def predicted(factors: Factors) -> list[float]:
        return [predict(row, scaled(row.cluster, factors)) for row in rows]

    def misfits(factors: Factors) -> list[float]:
        return [
            math.log(seconds / row.seconds)
            for seconds, row in zip(predicted(factors), rows, strict=True)
        ]

    for row, seconds in zip(rows, predicted({}), strict=True):
        if not 1 / _FAR_OFF < seconds / row.seconds < _FAR_OFF:
            raise UserError(
                f"'{row.name}' takes {figure_text(row.seconds)} s where "
                f"{figure_text(seconds)} s are predicted: no efficiency explains that; look "
                "whether recipe, cluster and unit are those of what was measured."
            )
    notes: list[str] = []
    if not names:
        names, notes = _identifiable(rows, misfits)
    clusters = [cluster, *(row.cluster for row in rows)]
    bounds = {name: _bounds(clusters, name, most) for name in names}
    fitted = _fit(misfits, bounds)
    constants = tuple(
        _constant(name, _share(cluster, name), factor, bounds[name])
        for name, factor in fitted.items()
    )
    notes += [
        f"{constant.name} ended at its bound, {constant.value:.3f}: the steps differ from the "
        "prediction in something that no efficiency explains"
        for constant in constants
        if constant.at_bound
    ]
    return Calibration(
        cluster=_told_so(scaled(cluster, fitted), constants, len(rows)),
        constants=constants,
        factors=fitted,
        residuals=tuple(map(Residual, rows, predicted({}), predicted(fitted))),
        notes=tuple(notes),
    )


def scaled(cluster: Cluster, factors: Factors) -> Cluster:
    """A cluster with some of its shares multiplied."""
    changes = {}
    for name, factor in factors.items():
        sourced = getattr(cluster.efficiency, name)
        if sourced is not None:
            changes[name] = sourced.model_copy(update={"value": sourced.value * factor})
    efficiency = cluster.efficiency.model_copy(update=changes)
    return cluster.model_copy(update={"efficiency": efficiency})


def _identifiable(
    rows: Sequence[Measured], misfits: Callable[[Factors], list[float]]
) -> tuple[list[str], list[str]]:
    """The names of the shares that the rows say something of, and sentences on the others."""
    first = Counter(map(_products, rows)).most_common(1)[0][0]
    if len(rows) < FEWEST_ROWS_FOR_TWO:
        say = "one step says" if len(rows) == 1 else f"{len(rows)} steps say"
        return [first], [f"{say} of one efficiency at most, and {first} is fitted"]
    at = misfits({})
    slopes = {name: _slope(misfits, {}, name, at) for name in (first, *SECOND)}
    own = {name: _rms(_without(slopes[name], slopes[first])) for name in SECOND}
    second = max(own, key=lambda name: own[name])
    if own[second] >= _INDEPENDENT:
        return [first, second], []
    return [first], [
        f"the steps depend on {', '.join(SECOND[:-1])} and {SECOND[-1]} as on {first}, or hardly, "
        f"and {first} alone is fitted"
    ]


def _fit(
    misfits: Callable[[Factors], list[float]], bounds: dict[str, tuple[float, float]]
) -> Factors:
    """The factors within their bounds whose misfits have the least sum of squares."""
    factors: Factors = dict.fromkeys(bounds, 1.0)
    at = misfits(factors)
    for _ in range(_MOST_ITERATIONS):
        slopes = [_slope(misfits, factors, name, at) for name in factors]
        rooms = [
            (math.log(bounds[name][0] / factor), math.log(bounds[name][1] / factor))
            for name, factor in factors.items()
        ]
        moves = _least_squares(slopes, at, rooms)
        for shrunk in (1.0, 0.5, 0.25, 0.125):
            tried = {
                name: factor * math.exp(shrunk * move)
                for (name, factor), move in zip(factors.items(), moves, strict=True)
            }
            there = misfits(tried)
            if _rms(there) < _rms(at):
                break
        else:
            return factors
        factors, at = tried, there
        if max(map(abs, moves)) < _CONVERGED:
            break
    return factors


def _least_squares(
    slopes: Sequence[Sequence[float]],
    at: Sequence[float],
    rooms: Sequence[tuple[float, float]],
) -> list[float]:
    """The moves m within their rooms for which |at + Σ m·slope| is least, by turns."""
    moves = [0.0] * len(slopes)
    left = list(at)
    for _ in range(_TURNS):
        for i, (slope, (low, high)) in enumerate(zip(slopes, rooms, strict=True)):
            steepness = sum(s * s for s in slope)
            if not steepness:
                continue
            wanted = moves[i] - sum(s * r for s, r in zip(slope, left, strict=True)) / steepness
            move = min(max(wanted, low), high)
            left = [r + (move - moves[i]) * s for s, r in zip(slope, left, strict=True)]
            moves[i] = move
    return moves


def _slope(
    misfits: Callable[[Factors], list[float]],
    factors: Factors,
    name: str,
    at: Sequence[float],
) -> list[float]:
    """Derivative of each misfit by the logarithm of a factor; downwards, which no peak ends."""
    lower = factors | {name: factors.get(name, 1.0) * math.exp(-_DIFFERENCE)}
    return [(a - b) / _DIFFERENCE for a, b in zip(at, misfits(lower), strict=True)]


def _without(vector: Sequence[float], other: Sequence[float]) -> list[float]:
    """The part of a vector that stands upright on another."""
    square = sum(b * b for b in other)
    along = sum(a * b for a, b in zip(vector, other, strict=True)) / square if square else 0.0
    return [a - along * b for a, b in zip(vector, other, strict=True)]


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def _products(row: Measured) -> str:
    """The share of the matrix products' format."""
    precision = row.recipe.precision
    return f"gemm_{precision.dtype if precision.fp8 is None else 'fp8'}"


def _share(cluster: Cluster, name: str) -> float | None:
    sourced = getattr(cluster.efficiency, name)
    return None if sourced is None else sourced.value


def _bounds(clusters: Sequence[Cluster], name: str, most: float) -> tuple[float, float]:
    """Least and largest factor of a share: no share leaves the peak, or becomes nothing."""
    shares = [share for cluster in clusters if (share := _share(cluster, name)) is not None]
    return max(1 / most, LEAST_SHARE / min(shares)), min(most, 1.0 / max(shares))


def _constant(
    name: str, before: float | None, factor: float, bounds: tuple[float, float]
) -> Constant:
    share = before or 1.0  # a cluster without the format, among others that have it
    return Constant(name, share, share * factor, share * bounds[0], share * bounds[1])


def _told_so(cluster: Cluster, constants: Sequence[Constant], steps: int) -> Cluster:
    """The cluster with the sources of its fitted shares."""
    measured = "one measured step" if steps == 1 else f"{steps} measured steps"
    sources = {
        constant.name: sourced.model_copy(
            update={
                "source": f"fitted to {measured} between {constant.low:.3f} and "
                f"{constant.high:.3f}; before: {constant.before:g}"
            }
        )
        for constant in constants
        if (sourced := getattr(cluster.efficiency, constant.name)) is not None
    }
    efficiency = cluster.efficiency.model_copy(update=sources)
    return cluster.model_copy(update={"efficiency": efficiency})
