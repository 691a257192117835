"""A small boosted Cox: shallow trees added one by one, each by a Newton step of the partial likelihood.

It sees what a line can't: thresholds, maxima, and pairs of inputs that matter together. The trees are saved as plain
numbers. Shapes: R rows, P inputs, B trees, L nodes of the largest tree.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from survival.cox import RiskSets, expected_events

DEPTH = 2  # of a tree: pairs of inputs at most
RATE = 0.05  # share of each tree's Newton step that is taken
SHARE = 1 / 3  # of the inputs, drawn at each node: trees that differ, in a third of the time
LEAST_ROWS = 10  # of a leaf
SHRINKAGE = 1.0  # expected events that are added to each leaf's: a leaf of few is shrunk to 0
LEAF = -1  # stands for the input of a node that is a leaf


@dataclasses.dataclass(frozen=True)
class BoostedCox:
    """Trees as arrays: a row goes left at a node if its input is not above the threshold."""

    column: np.ndarray  # (B, L) int, the input that a node looks at; LEAF
    threshold: np.ndarray  # (B, L)
    left: np.ndarray  # (B, L) int, the next node; of a leaf itself
    right: np.ndarray  # (B, L) int
    value: np.ndarray  # (B, L) what a leaf adds to the log-hazard

    @classmethod
    def fit(cls, inputs: np.ndarray, event: np.ndarray, sets: RiskSets, *, num_trees: int) -> "BoostedCox":
        """Add trees, each fitted to what the ones before have left.

        Args:
            inputs: (R, P), in any scale.
            event: (R,) bool.
            sets: risk sets of the rows, with an event or more.
            num_trees: B.
        Returns:
            The model; the order of the rows does not matter.
        """
        from sklearn.tree import DecisionTreeRegressor  # slow to import

        inputs, log_hazard, trees = inputs.astype(np.float32), np.zeros(len(inputs)), []
        for number in range(num_trees):
            expected = np.maximum(expected_events(log_hazard, sets), np.finfo(float).tiny)
            tree = DecisionTreeRegressor(
                max_depth=DEPTH, min_samples_leaf=LEAST_ROWS, max_features=SHARE, random_state=number
            )
            tree.fit(inputs, (event - expected) / expected, sample_weight=expected)
            leaf = tree.apply(inputs)
            nodes = tree.tree_.node_count
            step = np.bincount(leaf, event - expected, nodes) / (np.bincount(leaf, expected, nodes) + SHRINKAGE)
            trees.append((tree.tree_, RATE * step))
            log_hazard = log_hazard + RATE * step[leaf]
        return cls(*map(np.stack, zip(*(_as_arrays(tree, value) for tree, value in trees), strict=True)))

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Predict (R,) log-hazards of (R, P) inputs."""
        return list(self.staged(inputs))[-1]

    def staged(self, inputs: np.ndarray) -> Iterator[np.ndarray]:
        """Predict (R,) log-hazards of (R, P) inputs with the first tree, the first two, and so on."""
        inputs, rows, total = inputs.astype(np.float32), np.arange(len(inputs)), np.zeros(len(inputs))
        for column, threshold, left, right, value in zip(*dataclasses.astuple(self), strict=True):
            node = np.zeros(len(inputs), int)
            for _ in range(DEPTH):
                goes_left = inputs[rows, column[node]] <= threshold[node]  # of a leaf both ways lead to itself
                node = np.where(goes_left, left[node], right[node])
            total = total + value[node]
            yield total

    def first(self, num_trees: int) -> "BoostedCox":
        """The model of the first `num_trees` trees."""
        return BoostedCox(*(array[:num_trees] for array in dataclasses.astuple(self)))

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], *, num_inputs: int) -> "BoostedCox":
        """Restore what `dataclasses.asdict` gave, after a way through JSON.

        Args:
            saved: of the (B, L) arrays.
            num_inputs: P, that the trees may look at.
        Raises:
            KeyError, TypeError, ValueError: not what `asdict` gave.
        """
        types = {"threshold": float, "value": float}
        names = [field.name for field in dataclasses.fields(cls)]
        restored = cls(*(np.asarray(saved[name], types.get(name, int)) for name in names))
        shape = restored.column.shape
        nodes = (restored.left, restored.right)
        if len(shape) != 2 or any(array.shape != shape for array in dataclasses.astuple(restored)):
            raise ValueError("trees: expected five arrays of one shape")
        if (
            not all(((node >= 0) & (node < shape[1])).all() for node in nodes)
            or restored.column.max(initial=0) >= num_inputs
        ):
            raise ValueError("trees: expected nodes and inputs that exist")
        if not (np.isfinite(restored.threshold).all() and np.isfinite(restored.value).all()):
            raise ValueError("trees: expected finite numbers")
        return restored


def _as_arrays(tree: Any, value: np.ndarray) -> list[np.ndarray]:
    """The fields of `BoostedCox` of one tree, each (L,), filled up with leaves that nothing leads to."""
    most = 2 ** (DEPTH + 1) - 1
    itself, is_leaf = np.arange(most), np.ones(most, bool)
    is_leaf[: tree.node_count] = tree.children_left < 0

    def filled(values: np.ndarray, of_leaf: Any) -> np.ndarray:
        """(L,) the values of the nodes, and those of leaves."""
        return np.where(is_leaf, of_leaf, np.resize(values, most))

    nodes = [filled(array, itself) for array in (tree.children_left, tree.children_right)]
    return [
        filled(tree.feature, LEAF),
        filled(tree.threshold, 0.0),
        *nodes,
        np.where(is_leaf, np.resize(value, most), 0.0),
    ]
