"""AutoML's forecasting pipelines with a regression learner: whole series in, a line for each row and origin out."""

import copy
import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from batch_explain.errors import ArtifactError
from batch_explain.teachers.base import Predictions, Series
from batch_explain.teachers.columns import Column
from batch_explain.teachers.forecast_models import is_ensemble, refused_by_model

FORECASTING_STEP = "timeseriestransformer"
_TARGET = "known target"

# The SDK's featurizer keeps state while it transforms, and warnings are switched off for the whole process.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Lines:
    """Featurized rows.

    Parameters
    ----------
    features : DataFrame, shape (line, engineered)
        As the learner takes them.
    rows : ndarray of int
        The row of each line, ascending: without lags and windows a row has one line, with them one for each origin.
    origins : ndarray of datetime64[ns], or None
        The last time whose target a line's lags and windows may know; None without lags and windows.
    refused : dict
        Rows without a line -> why, as a sentence without its subject, or what the SDK raised.
    """

    features: pd.DataFrame
    rows: np.ndarray
    origins: np.ndarray | None
    refused: dict[int, str | Exception]


def is_forecasting(model: Any) -> bool:
    """Whether a model is an AutoML forecasting pipeline."""
    steps = getattr(model, "steps", None) or ()
    return any(name == FORECASTING_STEP for name, _ in steps[:1])


class ForecastingTeacher:
    """An AutoML pipeline for forecasting whose learner is a regression (or an ensemble of some).

    Features are made as ``forecast()`` makes them, of which ``automl_setup_model_explanations`` makes the same: history
    first, then the rows to explain, whose target is unknown. Where ``forecast()`` keeps a row's latest origin, all are
    kept here, as the SDK's explanations do, but for ensembles.

    Raises
    ------
    ArtifactError
        If the learner, or a member of it, has no explanation; or the target is transformed.
    """

    classes: tuple[Any, ...] | None = None
    has_probabilities = False
    task = "regression"

    def __init__(self, model: Any) -> None:
        from sklearn.pipeline import Pipeline

        self._transformer = model.steps[0][1]
        learner = model.steps[-1][1]
        if (refused := refused_by_model(learner)) is not None:
            raise ArtifactError(refused)
        self._model = model if hasattr(model, "forecast") else _wrapped(model)
        if getattr(self._model, "_y_transformer", None) is not None:
            raise ArtifactError(
                "The forecasting model transforms its target (differences), so that a forecast depends on those before "
                "it and its importances would be of another quantity than its predictions. Pass a model of the same "
                "experiment that was trained without it."
            )
        self.kind = f"AutoML forecasting pipeline ({type(learner).__name__})"
        self._latest_alone = is_ensemble(learner)
        self.estimator = Pipeline(list(model.steps[1:]))
        with _quiet():
            self._looks_back = bool(self._model._lag_or_rw_enabled())
        self.columns = self._columns()
        self.engineered_features: tuple[str, ...] | None = tuple(self._transformer.get_engineered_feature_names())
        transformer = self._transformer
        self._grain = [name for name in transformer.grain_column_names if name != transformer.dummy_grain_column]
        self.series: Series | None = Series(
            time=transformer.time_column_name,
            names=tuple(self._grain),
            origin=transformer.origin_column_name if self._looks_back else None,
            target=self._model.user_target_column_name,
            lines_of_a_row=self._lines_of_a_row,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know."""
        notes = []
        if self._latest_alone and self._looks_back:
            notes.append("the model is an ensemble: each row is explained at its latest origin alone, as the SDK does")
        if getattr(self._model, "adj_dict", None):
            notes.append(
                "the model's forecast() shifts what its learner predicts after a gap; predictions are the learner's own"
            )
        return tuple(notes)

    @property
    def _lines_of_a_row(self) -> int:
        return int(self._transformer.max_horizon) if self._looks_back and not self._latest_alone else 1

    def _columns(self) -> tuple[Column, ...]:
        transformer = self._transformer
        purposes = transformer.detected_column_purposes
        kinds: dict[str, Any] = dict.fromkeys(purposes.get("Categorical", ()), "O")
        kinds |= dict.fromkeys(purposes.get("Numeric", ()), "f8")
        kinds |= dict.fromkeys(purposes.get("DateTime", ()), "M8[ns]")
        kinds |= dict.fromkeys(transformer.boolean_columns, "?")
        kinds |= {name: "O" if kind == "str" else kind for name, kind in transformer._detected_grain_types.items()}
        kinds[transformer.time_column_name] = "M8[ns]"
        return tuple(Column(name, np.dtype(kinds[name]) if name in kinds else None) for name in transformer.columns)

    def featurize_series(self, frame: pd.DataFrame, history: pd.DataFrame, targets: np.ndarray) -> Lines:
        """Featurize whole series.

        Parameters
        ----------
        frame : DataFrame
            Rows to explain, numbered from 0, their columns as the model was trained on them.
        history : DataFrame
            Rows of the same series whose target is known, in any order.
        targets : ndarray of float64
            Their targets.
        """
        with _quiet():
            past = history.assign(**{_TARGET: targets})[~np.isnan(targets)]
            refused = self._refused(frame, past)
            good = frame.drop(index=list(refused))
            features, errors = self._of_groups(good, self._needed(past, good))
            lines = self._matched(features, frame)
        refused.update(errors)
        missing = set(range(len(frame))).difference(lines.rows.tolist(), refused)
        refused.update(self._left_out(frame, sorted(missing), past))
        return Lines(lines.features, lines.rows, lines.origins, dict(sorted(refused.items())))

    def featurize(self, frame: pd.DataFrame) -> Any:
        """Not how a forecasting pipeline featurizes: rows alone do not say what its lags need."""
        raise NotImplementedError("use featurize_series")

    def predict(self, engineered: Any) -> Predictions:
        """The learner's answer for featurized rows: what ``forecast`` gives for a row's latest origin."""
        with _quiet():
            found = np.asarray(self.estimator.predict(engineered), dtype=np.float64)
        return Predictions(found.reshape(len(found)))

    def predict_raw(self, frame: pd.DataFrame) -> Predictions:
        """Not how a forecasting pipeline predicts."""
        raise ArtifactError(
            "The explainer was made with transformations of its own, which a forecasting pipeline's rows cannot go "
            "through. Make it with the SDK's automl_setup_model_explanations."
        )

    def feature_map(self, raw_features: Sequence[str]) -> sp.csr_matrix | None:
        """Weight 1 for each (raw, engineered) pair that the featurizer's own description names."""
        position = {name: at for at, name in enumerate(raw_features)}
        described = self._transformer.get_json_strs_for_engineered_feature_names()
        pairs = [
            (position[name], column)
            for column, text in enumerate(described)
            for name in _inputs(json.loads(text))
            if name in position
        ]
        rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
        return sp.csr_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(position), len(described)))

    def _keys(self, frame: pd.DataFrame) -> list[Any]:
        """Each row's series, as the SDK names it."""
        if not self._grain:
            return [self._transformer.dummy_grain_column] * len(frame)
        if len(self._grain) == 1:
            return list(frame[self._grain[0]])
        return list(frame[self._grain].itertuples(index=False, name=None))

    def _refused(self, frame: pd.DataFrame, past: pd.DataFrame) -> dict[int, str | Exception]:
        """Rows that have no lines whatever the featurizer would make of them."""
        time, trained = self._transformer.time_column_name, self._model.forecast_origin
        place = [time, *self._grain]
        known = set(past[place].itertuples(index=False, name=None)) if self._looks_back else set()
        doubled, empty = frame.duplicated(place, keep=False), frame[place].isna()
        found: dict[int, str | Exception] = {}
        rows = zip(self._keys(frame), frame[time], frame[place].itertuples(index=False, name=None), strict=True)
        for row, (key, at, where) in enumerate(rows):
            if empty.iloc[row].any():
                found[row] = f"column '{place[int(empty.iloc[row].argmax())]}' is null: it says which series and when"
            elif doubled.iloc[row]:
                found[row] = "another row has its time and series"
            elif trained.get(key) is None:
                found[row] = f"the model was not trained on its series ({_named(key)})"
            elif self._model.is_grain_dropped(key):
                found[row] = (
                    f"its series ({_named(key)}) was too short or constant in training, so the learner knows nothing "
                    "of it"
                )
            elif where in known:
                found[row] = "the history has its time and series"
            elif self._looks_back and at <= trained[key]:
                found[row] = (
                    f"its time ({at}) is not after the model's training, which ended at {trained[key]} for its series"
                )
        return found

    def _needed(self, past: pd.DataFrame, good: pd.DataFrame) -> pd.DataFrame:
        """History that lags and windows may need: of series with rows to explain, after what the model knows itself."""
        if not self._looks_back:
            return past[:0]
        wanted, trained = set(self._keys(good)), self._model.forecast_origin
        times = past[self._transformer.time_column_name]
        kept = [key in wanted and at > trained[key] for key, at in zip(self._keys(past), times, strict=True)]
        return past[np.array(kept, dtype=bool)]

    def _of_groups(self, good: pd.DataFrame, past: pd.DataFrame) -> tuple[list[pd.DataFrame], dict[int, Exception]]:
        """Featurize series together; where the SDK refuses that, in halves, down to the series that it means."""
        if good.empty:
            return [], {}
        try:
            return [self._featurized(good, past)], {}
        except MemoryError:
            raise
        except Exception as error:  # the SDK refuses data with exceptions of any type
            keys = pd.Series(self._keys(good), index=good.index)
            names = list(dict.fromkeys(keys))
            if len(names) == 1:
                return [], dict.fromkeys(good.index.tolist(), error)
        features: list[pd.DataFrame] = []
        errors: dict[int, Exception] = {}
        of_past = pd.Series(self._keys(past), index=past.index, dtype=object)
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            found, refused = self._of_groups(good[keys.isin(half)], past[of_past.isin(half)])
            features += found
            errors |= refused
        return features, errors

    def _featurized(self, good: pd.DataFrame, past: pd.DataFrame) -> pd.DataFrame:
        """What the SDK makes of rows that follow their history; lines of the history too."""
        if not self._looks_back:
            found: pd.DataFrame = self._transformer.transform(good.reset_index(drop=True))
            return found
        model = self._model
        rows = pd.concat([past.drop(columns=_TARGET), good], ignore_index=True)
        targets = np.concatenate([past[_TARGET].to_numpy(dtype=np.float64), np.full(len(good), np.nan)])
        prepared = model._prepare_prediction_input_common(rows, targets)
        whole, _, _ = model._prepare_prediction_data_for_forecast(prepared.get_scenario_data("automl"))
        _, features = model._apply_preprocessors(
            [self._transformer], whole, select_latest_origin_times=self._latest_alone
        )
        found = features.drop(columns=model.target_column_name)
        return found

    def _matched(self, features: list[pd.DataFrame], frame: pd.DataFrame) -> Lines:
        """Lines with their rows, found by time and series: the SDK changes the order and adds rows in gaps."""
        transformer = self._transformer
        place = [transformer.time_column_name, *self._grain]
        if not features:
            empty = pd.DataFrame({name: [] for name in self.engineered_features or ()}, dtype=np.float64)
            nothing = np.array([], dtype="M8[ns]") if self._looks_back else None
            return Lines(empty, np.array([], dtype=np.int64), nothing, {})
        found = pd.concat(features)
        keys = found.index.to_frame(index=False)
        order = pd.DataFrame({"row": np.arange(len(frame))}).join(frame[place]).drop_duplicates(place, keep=False)
        rows = keys[place].merge(order, how="left", on=place)["row"].to_numpy(dtype=np.float64)
        origins = keys[transformer.origin_column_name].to_numpy("M8[ns]") if self._looks_back else None
        lines = np.flatnonzero(~np.isnan(rows))
        by = (rows[lines],) if origins is None else (origins[lines], rows[lines])
        lines = lines[np.lexsort(by)]
        return Lines(found.iloc[lines], rows[lines].astype(np.int64), None if origins is None else origins[lines], {})

    def _left_out(self, frame: pd.DataFrame, rows: list[int], past: pd.DataFrame) -> Iterator[tuple[int, str]]:
        """Why the featurizer made no line of rows."""
        transformer = self._transformer
        latest = dict(self._model.forecast_origin)
        if self._looks_back and len(past):
            for key, at in zip(self._keys(past), past[transformer.time_column_name], strict=True):
                latest[key] = max(at, latest.get(key, at))
        keys = self._keys(frame)
        for row in rows:
            if not self._looks_back:
                yield row, f"its time does not fit the frequency of the training data ({transformer.freq})"
                continue
            yield (
                row,
                f"no origin within the model's horizon of {transformer.max_horizon} periods ({transformer.freq}) has "
                f"known targets for its lags and windows (the last known one of its series is of {latest[keys[row]]}); "
                "give later targets by --history",
            )


def _inputs(description: Any) -> Sequence[str]:
    """Raw columns that an engineered feature is made of; none where the SDK describes nothing."""
    if not isinstance(description, dict):
        return ()
    first = description.get("Transformations", {}).get("Transformer1", {})
    return [name for name in first.get("Input", ()) if isinstance(name, str)]


def _named(key: Any) -> str:
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _wrapped(model: Any) -> Any:
    """A plain pipeline with what forecasts by it."""
    from azureml.training.tabular.models.forecasting_pipeline_wrapper import ForecastingPipelineWrapper

    with _quiet():
        return ForecastingPipelineWrapper(copy.copy(model), stddev=[1.0])


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread at a time, without the SDK's warnings about itself; recorded, because it switches them on again."""
    with _ONE_AT_A_TIME, warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        yield
