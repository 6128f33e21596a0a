"""LightGBM surrogates, explained by exact path-dependent TreeSHAP."""

import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from batch_explain.errors import ArtifactError
from batch_explain.explainers.base import Explainer, Matrix, UsedValues, dense
from batch_explain.trees.ensemble import Ensemble
from batch_explain.trees.lightgbm_text import UnknownFormatError, read_model_text
from batch_explain.treeshap.background import check_count, check_rows, go_left, mean_margins
from batch_explain.treeshap.kernel import (
    DEFAULT_TABLE_BYTES,
    KernelMissingError,
    MakeArray,
    TreeShap,
    choose_isa,
    load_kernel,
)

# Below this width a sparse batch is made dense: LightGBM's sparse contributions go through a hash map per row.
DENSE_COLUMNS = 1_000

_TABLES, _LIGHTGBM = "tables", "lightgbm"

_RESCALED = (
    "shap_values_output is 'probability': dense multiclass values are rescaled toward the surrogate's probabilities by "
    "the SDK's heuristic; sparse and single-output values stay margins"
)


class TreeExplainer(Explainer):
    """A LightGBM model.

    Values are path-dependent SHAP values (Lundberg, Erion and Lee, 2018, "Consistent Individualized Feature
    Attribution for Tree Ensembles", algorithm 2), computed by :class:`batch_explain.treeshap.kernel.TreeShap`; where
    that cannot be, by LightGBM's own ``pred_contrib``, and ``notes`` say so.

    Parameters
    ----------
    text : str
        The model's text.
    booster : lightgbm.Booster or None
        The model itself. None: made from the text when margins are asked for.
    engineered_features : sequence of str or None
        Names of its columns; None: the model's own.
    iterations, sparse_iterations : int
        Boosting iterations used for dense and for sparse input; 0 or less: all. The SDK uses all for dense input and
        the best iteration of early stopping for sparse input, so the two can differ.
    data_mapper : object, optional
        ``transform`` from raw to engineered, of explainers made with ``transformations``.
    probability_iterations : int, optional
        Dense values of several outputs are rescaled to the surrogate's own probabilities after so many iterations (0
        or less: all), as the SDK does for ``shap_values_output="probability"``. None: values are margins.
    table_bytes : int
        Bound on the memory of the kernel's tables.
    make_array : callable, optional
        Where the kernel's tables are held: see :class:`batch_explain.treeshap.kernel.TreeShap`.

    Raises
    ------
    ArtifactError
        If the model is damaged, has linear trees, or inner nodes that no training row came by.

    Attributes
    ----------
    text : str
        The model's text.
    iterations : dict
        Whether the rows are sparse -> boosting iterations used; -1: all.
    probability_iterations : int or None
    """

    kind = "tree"

    def __init__(
        self,
        text: str,
        *,
        booster: Any = None,
        engineered_features: Sequence[str] | None = None,
        iterations: int = -1,
        sparse_iterations: int = -1,
        surrogate_classes: tuple[Any, ...] | None = None,
        data_mapper: Any = None,
        probability_iterations: int | None = None,
        table_bytes: int = DEFAULT_TABLE_BYTES,
        make_array: MakeArray | None = None,
    ) -> None:
        self.text, self._lightgbm = text, booster
        self.iterations = {False: iterations, True: sparse_iterations}  # by whether the rows are sparse
        self.data_mapper = data_mapper
        self.probability_iterations = probability_iterations
        self._table_bytes, self._make_array = table_bytes, make_array
        self._kernels: dict[int, TreeShap] = {}
        self._background: np.ndarray | None = None
        self._lock = threading.Lock()
        self._ensemble, objective, names = self._read()
        self._width = len(names)
        rounds = self._trees // self._outputs
        self.iterations = {sparse: n if 0 < n < rounds else -1 for sparse, n in self.iterations.items()}
        self.engineered_features = tuple(engineered_features or names)
        if len(self.engineered_features) != self._width:
            raise ArtifactError(
                f"The explainer names {len(self.engineered_features)} engineered features but its surrogate takes "
                f"{self._width}. It does not hold together: make the explainer again."
            )
        self.surrogate_classes = surrogate_classes if self._outputs > 1 else None
        self.link = _link(objective, self._outputs)
        self.expected_values = self.expected_values_of(sparse=False)
        self.description = f"LightGBM surrogate, {self._trees} trees, {len(self.used)} features used"
        if probability_iterations is not None:
            self.notes += (_RESCALED,)

    def _read(self) -> tuple[Ensemble | None, str, Sequence[str]]:
        """The trees (None where LightGBM has to answer), the objective and the columns' names."""
        try:
            ensemble = read_model_text(self.text)
        except UnknownFormatError as error:
            self._fall_back(str(error).rstrip("."))
        else:
            self._outputs, self._trees = ensemble.n_outputs, ensemble.n_trees
            limits = list(self.iterations.values())
            self.used = ensemble.first(-1 if min(limits) <= 0 else max(limits)).used
            try:
                self._isa = choose_isa(load_kernel().instruction_sets(), None)
            except KernelMissingError as error:
                self._fall_back(str(error))
            else:
                return ensemble, ensemble.objective, ensemble.feature_names
            return None, ensemble.objective, ensemble.feature_names
        if re.search(r"^is_linear=1", self.text, re.MULTILINE):
            raise ArtifactError(
                "The surrogate has linear trees (linear_tree=true), for which no exact SHAP values exist. Train it "
                "with linear_tree=false."
            )
        booster = self._booster()
        self._outputs, self._trees = int(booster.num_model_per_iteration()), int(booster.num_trees())
        self.used = _split_features(self.text)
        found = re.search(r"^objective=(.*)$", self.text, re.MULTILINE)
        return None, found[1] if found else "", booster.feature_name()

    def _fall_back(self, reason: str) -> None:
        self.notes += (f"importances are computed by LightGBM's own pred_contrib, which is slow: {reason}",)

    def _booster(self) -> Any:
        """The model in LightGBM."""
        with self._lock:
            if self._lightgbm is None:
                import lightgbm

                # told the sizes, LightGBM reads the trees in threads, where a damaged one ends the whole process
                text = re.sub(r"^tree_sizes=.*\n", "", self.text, count=1, flags=re.MULTILINE)
                try:
                    self._lightgbm = lightgbm.Booster(model_str=text)
                except lightgbm.basic.LightGBMError as error:
                    raise ArtifactError(
                        f"The LightGBM model text cannot be read: {error}. Write it again with Booster.save_model."
                    ) from error
            return self._lightgbm

    def _kernel(self, sparse: bool) -> TreeShap:
        """The kernel over the trees that rows of this format are explained by."""
        assert self._ensemble is not None
        limited = self._ensemble.first(self.iterations[sparse])
        with self._lock:
            if limited.n_trees not in self._kernels:
                self._kernels[limited.n_trees] = TreeShap(
                    limited,
                    table_bytes=self._table_bytes,
                    isa=self._isa,
                    make_array=self._make_array,
                    background=self._background,
                )
                self._keep_to_bound(self._kernels[limited.n_trees])
            return self._kernels[limited.n_trees]

    def _keep_to_bound(self, kernel: TreeShap) -> None:
        """Even where no leaf has a table, its answers are kept."""
        if self._background is not None and kernel.table_bytes > self._table_bytes:
            self._kernels.clear()
            raise ArtifactError(
                f"Against {len(self._background)} background rows this explainer keeps {kernel.table_bytes / 1e6:,.1f} "
                f"MB at least, more than the {self._table_bytes / 1e6:,.1f} MB that its tables may take: it has many "
                "leaves. Pass fewer background rows, or more --table-memory."
            )

    def expected_values_of(self, *, sparse: bool) -> np.ndarray:
        """Base values of rows of a format, shape (output,)."""
        if self._ensemble is None:
            row = sp.csr_matrix((1, self._width)) if sparse else np.zeros((1, self._width))
            return np.array(self.pred_contrib(row)[:, -1, 0])
        limited = self._ensemble.first(self.iterations[sparse])
        if self._background is None:
            return limited.expected_values()
        return mean_margins(limited, go_left(limited, self._background))

    @property
    def background(self) -> np.ndarray | None:
        """The rows that values are compared with, shape (row, engineered feature); None: they are path-dependent."""
        return self._background

    def set_background(self, engineered: Matrix) -> None:
        """See :meth:`Explainer.set_background`."""
        if self._ensemble is None:
            raise ArtifactError(
                "Interventional values need the compiled kernel, which cannot be used here. Install the package again, "
                "or leave --background out."
            )
        if self.probability_iterations is not None and self._outputs > 1:
            raise ArtifactError(
                "The explainer rescales its values toward probabilities (shap_values_output is 'probability'), which "
                "interventional values are not. Leave --background out, or make the explainer without it."
            )
        if engineered.shape[1] != self._width:
            raise ValueError(f"the background has {engineered.shape[1]} columns; the trees take {self._width}")
        check_count(engineered.shape[0])  # before a sparse matrix becomes large
        rows = dense(engineered)
        check_rows(rows)
        self._background = rows
        self._kernels.clear()
        self.expected_values = self.expected_values_of(sparse=False)
        self.notes += (
            f"importances are interventional SHAP values against {len(self._background)} background rows: expected "
            "values are the mean margins of these",
        )

    @property
    def depends_on_format(self) -> bool:
        """See :attr:`Explainer.depends_on_format`."""
        return self.iterations[True] != self.iterations[False] or self._rescales(np.empty(0))

    def _rescales(self, engineered: Matrix) -> bool:
        return self.probability_iterations is not None and self._outputs > 1 and not sp.issparse(engineered)

    @property
    def treeshap(self) -> dict[str, Any]:
        """See :attr:`Explainer.treeshap`."""
        if self._ensemble is None:
            return {"kernel": _LIGHTGBM}
        kernels = list(self._kernels.values())
        refused = [kernel.not_shared for kernel in kernels if kernel.not_shared]
        return {
            "kernel": self._isa,
            "table_bytes": sum(kernel.table_bytes for kernel in kernels),
            "tables": "of each process" if self._make_array is None or refused else "shared by the processes",
            **({"not_shared": refused[0]} if refused else {}),
        }

    @property
    def scratch_bytes(self) -> int:
        """See :attr:`Explainer.scratch_bytes`: LightGBM answers dense rows for all columns."""
        if self._ensemble is not None or self._width > DENSE_COLUMNS:
            return 0
        return 8 * (self._outputs + 1) * (self._width + 1)

    def prepare(self) -> None:
        """See :meth:`Explainer.prepare`: import LightGBM, and build the tables where one kernel serves both formats."""
        self._booster()
        if self._ensemble is not None and self.iterations[True] == self.iterations[False]:
            self._kernel(sparse=False)

    def learn(self, first_row: Matrix) -> None:
        """Take the expected values of the format that is explained: the iteration limits can differ."""
        super().learn(first_row)
        if sp.issparse(first_row) and self.iterations[True] != self.iterations[False]:
            self.expected_values = self.expected_values_of(sparse=True)

    def learned(self) -> dict[str, Any]:
        """What computes the values: all processes must write the same bytes."""
        return {"treeshap": _LIGHTGBM if self._ensemble is None else _TABLES}

    def take_learned(self, state: dict[str, Any]) -> None:
        """Compute as the planning process does.

        Raises
        ------
        ArtifactError
            If it uses the kernel and this process cannot.
        """
        if state.get("treeshap") == _LIGHTGBM:
            self._ensemble = None
        elif state.get("treeshap") == _TABLES and self._ensemble is None:
            raise ArtifactError(
                f"A worker cannot compute as the run was planned: there, {self.notes[0]}. Install the same package "
                "on every worker."
            )

    def explain_used(self, engineered: Matrix, *, values: bool = True, raw: bool = False) -> UsedValues:
        """See :meth:`Explainer.explain_used`."""
        if engineered.shape[1] != self._width:
            raise ValueError(f"the rows have {engineered.shape[1]} columns; the surrogate takes {self._width}")
        if self._ensemble is None or self._rescales(engineered):
            return super().explain_used(engineered, values=values, raw=raw)
        kernel = self._kernel(sp.issparse(engineered))
        weights = self.feature_map[:, kernel.used] if raw and self.feature_map is not None else None
        found = kernel.explain(engineered, feature_map=weights, engineered=values)
        return UsedValues(self._spread(found.engineered, kernel.used), found.margins, found.raw)

    def _spread(self, values: np.ndarray | None, used: np.ndarray) -> np.ndarray | None:
        """Along the features that either format's trees use."""
        if values is None or len(used) == len(self.used):
            return values
        spread = np.zeros((values.shape[0], len(self.used), values.shape[2]))
        spread[:, np.searchsorted(self.used, used)] = values
        return spread

    def values_of(self, engineered: Matrix) -> UsedValues:
        """See :meth:`Explainer.values_of`."""
        if self._ensemble is None:
            contributions = self.pred_contrib(engineered)
            values, expected, margins = contributions[:, :-1], contributions[:, -1, 0], contributions.sum(axis=1)
        else:
            sparse = sp.issparse(engineered)
            kernel = self._kernel(sparse)
            found = kernel.explain(engineered)
            spread = self._spread(found.engineered, kernel.used)
            assert spread is not None  # they were asked for
            values, expected, margins = spread, kernel.expected_values, found.margins
        if self._rescales(engineered):
            values = self._as_probability(values, expected, engineered)
        return UsedValues(values, margins)

    def margins(self, engineered: Matrix) -> np.ndarray:
        """See :meth:`Explainer.margins`."""
        iterations = self.iterations[sp.issparse(engineered)]
        raw = self._booster().predict(engineered, raw_score=True, num_iteration=iterations, num_threads=1)
        return np.asarray(raw).reshape(engineered.shape[0], self._outputs).T

    @property
    def same_in_lightgbm(self) -> bool:
        """Whether :meth:`pred_contrib` has to give the same values: it knows no weights of rows and no background."""
        whole = self._ensemble is None or bool(np.all(self._ensemble.node_count % 1 == 0))
        return whole and self._background is None

    def pred_contrib(self, engineered: Matrix) -> np.ndarray:
        """LightGBM's own, shape (output, used feature + 1, row); the last feature is the expected value."""
        rows, iterations = engineered.shape[0], self.iterations[sp.issparse(engineered)]
        kept = np.append(self.used, self._width)
        result = np.empty((self._outputs, len(kept), rows))
        if rows == 0:
            return result
        if sp.issparse(engineered) and self._width <= DENSE_COLUMNS:
            engineered = dense(engineered)
        found = self._booster().predict(engineered, pred_contrib=True, num_iteration=iterations, num_threads=1)
        if isinstance(found, np.ndarray):
            wide = found.reshape(rows, self._outputs, self._width + 1)
            for output in range(self._outputs):
                result[output] = wide[:, output, kept].T
        else:
            for output, matrix in enumerate(found if isinstance(found, list) else [found]):
                result[output] = sp.csc_matrix(matrix)[:, kept].toarray().T
        return result

    def _as_probability(self, values: np.ndarray, expected: np.ndarray, engineered: Matrix) -> np.ndarray:
        """Rescale each output's values toward the probability, as the SDK does for dense multiclass input.

        The formula is ``interpret_community.common.explanation_utils._scale_single_shap_matrix``'s: the error
        against the probability is spread over the features in proportion to their absolute values, and what is left
        of it evenly. It is a heuristic; for sparse input the SDK has none.
        """
        probability = self._booster().predict(engineered, num_iteration=self.probability_iterations, num_threads=1)
        n_features = self._width
        scaled = np.empty_like(values)
        for output, value in enumerate(values):
            error = probability[:, output] - value.sum(axis=0) - expected[output]
            size, magnitude = np.abs(error), np.abs(value).sum(axis=0)
            share = np.sign(error) * np.minimum(size, magnitude) / np.where(magnitude > 0, magnitude, 1.0)
            flat = np.maximum(size - magnitude, 0.0) * np.sign(error) / n_features
            scaled[output] = value + share * np.abs(value) + flat
        return scaled


def _split_features(text: str) -> np.ndarray:
    """Features that any tree splits on, from the model text (its importances leave out splits without gain)."""
    used: set[int] = set()
    for line in re.findall(r"^split_feature=(.*)$", text, re.MULTILINE):
        used.update(int(feature) for feature in line.split())
    return np.array(sorted(used), dtype=np.int64)


def _link(spelled: str, outputs: int) -> str:
    """From margin to prediction, by the model text's objective."""
    objective, *rest = spelled.split() or ["regression"]
    if objective == "multiclass":
        return "softmax"
    if objective == "custom" and rest == ["probability"]:
        return "probability"
    if objective == "binary" and outputs == 1 and "sigmoid:1" in rest:
        return "sigmoid"
    if objective in ("regression", "regression_l1", "huber", "fair", "quantile", "mape") and "sqrt" not in rest:
        return "identity"
    return "unknown"
