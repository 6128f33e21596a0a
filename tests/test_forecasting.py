"""Forecasting: whole series, their history, a line for each row and origin, as the SDK itself explains them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import batch_explain as bx
from batch_explain.errors import ArtifactError, BadDataError, OptionError
from tests.comparing import assert_close, frame_of

pytestmark = pytest.mark.automl

KINDS = {
    "plain": {"looks_back": False},
    "lags": {"looks_back": True},
    "two_keys": {"looks_back": True, "grain": 2},
    "one_series": {"looks_back": True, "grain": 0},
}
PAST = "past_targets"


@pytest.fixture(scope="module")
def forecasting(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A forecasting pipeline with its explainer, built once."""
    from tests.automl_fixtures.forecasting import build_forecasting

    folder, built = tmp_path_factory.mktemp("forecasting"), dict[str, Any]()

    def build(kind: str) -> Any:
        if kind not in built:
            built[kind] = build_forecasting(folder / kind, **KINDS[kind])
        return built[kind]

    return build


def next_days(paths: Any, days: int = 5, after: int = 0) -> pd.DataFrame:
    """Rows of the days after those of training."""
    first = paths.later["when"].min() + pd.Timedelta(days=after)
    later = paths.later["when"]
    return paths.later[(later >= first) & (later < first + pd.Timedelta(days=days))].reset_index(drop=True)


def write(folder: Path, frame: pd.DataFrame, files: int = 1, *, target: bool = False) -> Path:
    """Write rows shuffled over files with row groups of 3, so that each series is in all of them."""
    frame = frame.sample(frac=1, random_state=1)
    folder.mkdir(parents=True)
    for number in range(files):
        part = frame.iloc[number::files]
        (part if target else part.drop(columns="demand")).to_parquet(
            folder / f"{number}.parquet", index=False, row_group_size=3
        )
    return folder


def run(paths: Any, rows: Path, output: Path, **options: Any) -> bx.Run:
    return bx.explain_dataset(
        input=rows, model=paths.model, explainer=paths.explainer, output=output, **{"scheduler": "sync", **options}
    )


def lines_of(result: bx.Run, level: str) -> pd.DataFrame:
    """A table by time, series and origin."""
    frame = frame_of(result, level)
    return frame.set_index([name for name in frame if name.startswith("key.")]).sort_index()


def assert_are(found: pd.DataFrame, expected: pd.DataFrame, grain: list[str]) -> None:
    """The same lines with the same values; of the columns that the SDK has."""
    if not grain:
        expected = expected.droplevel("_automl_dummy_grain_col")
    expected = expected.sort_index()
    assert [f"key.{name}" for name in expected.index.names] == list(found.index.names)
    assert list(found.index) == list(expected.index)
    assert np.abs(expected.to_numpy()).max() > 1
    assert_close(found[list(expected.columns)].to_numpy()[None], expected.to_numpy()[None], 1e-9)


@pytest.mark.parametrize(
    "kind, partition_rows", [("plain", 7), ("lags", 7), ("lags", 1_000), ("two_keys", 7), ("one_series", 7)]
)
def test_lines_are_the_sdks(kind: str, partition_rows: int, forecasting: Callable[[str], Any], tmp_path: Path) -> None:
    from tests.automl_fixtures.forecasting import sdk_lines

    paths = forecasting(kind)
    rows = next_days(paths)
    engineered, raw = sdk_lines(paths, paths.train, rows)
    result = run(paths, write(tmp_path / "in", rows, files=3), tmp_path / "out", partition_rows=partition_rows)
    origins = 1 if kind == "plain" else 3  # five days: 5 + 4 + 3 + 2 + 1 origins of each series
    assert len(engineered) == len(rows) * origins
    assert result.info["rows"] == {
        "input": len(rows), "planned": len(rows), "explained": len(rows), "quarantined": 0,
        "lines": len(engineered), "context": 0,
    }  # fmt: skip
    assert result.info["partitions"] == (1 if partition_rows == 1_000 or kind == "one_series" else len(rows) // 5)
    assert_are(lines_of(result, "engineered"), engineered, paths.grain)
    assert_are(lines_of(result, "raw"), raw, paths.grain)


@pytest.mark.parametrize("kind", ["lags", "plain"])
def test_no_importance_is_lost_on_the_way_to_raw_columns(
    kind: str, forecasting: Callable[[str], Any], tmp_path: Path
) -> None:
    """Lags come from no raw column: the SDK drops their importance, here it has a column."""
    paths = forecasting(kind)
    result = run(paths, write(tmp_path / "in", next_days(paths)), tmp_path / "out")
    engineered, raw = lines_of(result, "engineered"), lines_of(result, "raw")
    np.testing.assert_allclose(raw.sum(axis=1), engineered.sum(axis=1), rtol=1e-9)
    lags = [name for name in engineered if "lag" in name or "window" in name or name == "_automl_target_col_WASNULL"]
    np.testing.assert_allclose(raw[PAST], engineered[lags].sum(axis=1), rtol=1e-9, atol=1e-9)
    assert (kind == "plain") == (np.abs(raw[PAST]).max() == 0)
    assert any(PAST in decision for decision in result.info["decisions"])


@pytest.mark.parametrize("given", ["history", "input"])
def test_history_moves_the_origins_on(given: str, forecasting: Callable[[str], Any], tmp_path: Path) -> None:
    """Eight more days are known: the lines are those that the SDK makes of all days where it knows no more."""
    import joblib

    from tests.automl_fixtures.forecasting import set_up
    from tests.automl_fixtures.quiet import quiet

    paths = forecasting("lags")
    known, rows = next_days(paths, 8), next_days(paths, 5, after=8)
    if given == "history":
        options = {"history": write(tmp_path / "past", known, files=2, target=True), "target_column": "demand"}
        result = run(paths, write(tmp_path / "in", rows), tmp_path / "out", partition_rows=20, **options)
    else:
        whole = pd.concat([known, rows.assign(demand=np.nan)])
        result = run(
            paths, write(tmp_path / "in", whole, files=3, target=True), tmp_path / "out", target_column="demand"
        )
    with quiet():
        model, explainer = joblib.load(paths.model), joblib.load(paths.explainer)
        features = set_up(model, pd.concat([known, rows]), rows).X_transform
        when, origin = features.index.get_level_values("when"), features.index.get_level_values("origin")
        features = features[(when > known.when.max()) & (origin <= known.when.max())]
        expected = pd.DataFrame(explainer.explain(features), features.index, columns=list(features.columns))
        context = pd.concat([known, rows], ignore_index=True)
        target = np.where(context.when > known.when.max(), np.nan, context.demand)
        forecast, _ = model.forecast(context.drop(columns="demand"), target)
    assert_are(lines_of(result, "engineered"), expected, paths.grain)
    assert result.info["rows"]["context"] == (32 if given == "input" else 0)
    predicted = lines_of(result, "predictions").prediction
    latest = predicted.groupby(level=["key.when", "key.store"]).last()
    of_forecast = pd.Series(forecast, pd.MultiIndex.from_frame(context[["when", "store"]]))
    np.testing.assert_allclose(latest, of_forecast.reindex(latest.index), rtol=1e-12)


def test_a_series_is_never_cut_and_schedulers_agree(forecasting: Callable[[str], Any], tmp_path: Path) -> None:
    paths = forecasting("lags")
    rows = write(tmp_path / "in", next_days(paths), files=4)
    one = run(paths, rows, tmp_path / "one")
    for scheduler in ("threads", "processes"):
        found = run(paths, rows, tmp_path / scheduler, scheduler=scheduler, workers=2, partition_rows=1)
        assert found.info["partitions"] == 4
        for part in sorted((tmp_path / scheduler / "raw").iterdir()):
            assert pd.read_parquet(part)["key.store"].nunique() == 1
        for level in ("predictions", "engineered", "raw"):
            pd.testing.assert_frame_equal(lines_of(found, level), lines_of(one, level), rtol=0, atol=1e-12)
        assert bx.verify_run(tmp_path / scheduler, recompute="100%").ok


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda rows: rows.assign(store=rows.store.where(rows.index != 3, "new")), "not trained on its series"),
        (lambda rows: pd.concat([rows, rows.iloc[3:4]], ignore_index=True), "another row has its time and series"),
        (lambda rows: rows.assign(when=rows.when.where(rows.index != 3)), "'when' is null"),
        (lambda rows: rows.assign(when=rows.when.where(rows.index != 3, pd.Timestamp("2021-02-01"))), "training"),
        (lambda rows: rows.assign(when=rows.when.where(rows.index != 3, pd.Timestamp("2022-02-01"))), "horizon"),
    ],
)
def test_rows_that_cannot_be_forecast(
    spoil: Callable[[pd.DataFrame], pd.DataFrame], reason: str, forecasting: Callable[[str], Any], tmp_path: Path
) -> None:
    paths = forecasting("lags")
    rows = spoil(next_days(paths))
    folder = write(tmp_path / "in", rows)
    with pytest.raises(BadDataError, match=reason):
        run(paths, folder, tmp_path / "strict")
    result = run(paths, folder, tmp_path / "out", max_bad_rows=2)
    bad = pd.read_parquet(tmp_path / "out" / "quarantine")
    assert bad.reason.str.contains(reason).all() and len(bad) == (2 if len(rows) > 20 else 1)
    assert result.info["rows"]["explained"] == len(rows) - len(bad)
    whole = run(paths, write(tmp_path / "good", next_days(paths)), tmp_path / "whole")
    good, all_lines = lines_of(result, "engineered"), lines_of(whole, "engineered")
    pd.testing.assert_frame_equal(good, all_lines[all_lines.index.isin(good.index)], rtol=0, atol=1e-12)
    assert bx.verify_run(tmp_path / "out", recompute="100%").ok


def test_options_that_do_not_fit(
    forecasting: Callable[[str], Any], automl: Callable[[str], Any], tmp_path: Path
) -> None:
    plain, lags = forecasting("plain"), forecasting("lags")
    rows, past = write(tmp_path / "in", next_days(plain)), write(tmp_path / "past", next_days(plain), target=True)
    with pytest.raises(OptionError, match="no lags"):
        run(plain, rows, tmp_path / "1", history=past)
    with pytest.raises(OptionError, match="nothing to forecast"):
        run(lags, past, tmp_path / "2", target_column="demand")
    other = automl("regression")
    with pytest.raises(OptionError, match="for forecasting models"):
        bx.explain_dataset(
            input=other.raw, model=other.model, explainer=other.explainer, output=tmp_path / "3", history=past
        )


def test_a_stopped_run_is_gone_on_with(forecasting: Callable[[str], Any], tmp_path: Path) -> None:
    """Three series are done when the fourth one's bad row stops the run; the history may not change meanwhile."""
    paths = forecasting("lags")
    known, rows = next_days(paths, 2), next_days(paths, 3, after=2)
    rows.loc[rows.index[-1], "when"] = pd.NaT
    past = write(tmp_path / "past", known, target=True)
    options = {"history": past, "target_column": "demand", "partition_rows": 1}
    folder = write(tmp_path / "in", rows, files=2)
    whole = run(paths, folder, tmp_path / "whole", max_bad_rows=1, **options)
    with pytest.raises(BadDataError, match="is null"):
        run(paths, folder, tmp_path / "out", **options)
    status = bx.run_status(tmp_path / "out")
    assert (status.partitions, status.done, status.rows) == (4, 3, 12)
    kept = (past / "0.parquet").read_bytes()
    known.assign(demand=0.0).to_parquet(past / "0.parquet", index=False)
    with pytest.raises(OptionError, match=r"the history file '?0\.parquet'? is changed"):
        run(paths, folder, tmp_path / "out", resume=True, max_bad_rows=1, **options)
    (past / "0.parquet").write_bytes(kept)
    result = run(paths, folder, tmp_path / "out", resume=True, max_bad_rows=1, **options)
    assert result.info["rows"] == whole.info["rows"] and result.info["rows"]["explained"] == 11
    for part in sorted((tmp_path / "whole").rglob("part-*.parquet")):
        assert part.read_bytes() == (tmp_path / "out" / part.relative_to(tmp_path / "whole")).read_bytes()


def test_a_forecasting_model_that_is_trees_explains_itself(forecasting: Callable[[str], Any], tmp_path: Path) -> None:
    """Its importances add up to its own forecasts."""
    paths = forecasting("lags")
    result = bx.explain_dataset(
        input=write(tmp_path / "in", next_days(paths)), model=paths.model, output=tmp_path / "out", scheduler="sync"
    )
    total = lines_of(result, "engineered").sum(axis=1) + result.info["expected_values"][0]
    np.testing.assert_allclose(total, lines_of(result, "predictions").prediction, rtol=1e-9)


def test_a_fit_makes_the_explainer_that_the_sdk_makes(forecasting: Callable[[str], Any], tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.automl_fixtures.forecasting import sdk_lines

    paths = forecasting("lags")
    rows, train = next_days(paths), tmp_path / "train.parquet"
    paths.train.to_parquet(train, index=False)
    given = {"model": paths.model, "train": train, "label": "demand", "output": tmp_path / "fitted"}
    with pytest.raises(OptionError, match="by --test"):
        bx.fit(**given)
    with pytest.raises(OptionError, match="series are not cut"):
        bx.fit(**given, test=write(tmp_path / "test", rows, target=True), max_train_rows=100)
    with pytest.raises(OptionError, match="Leave --surrogate out"):
        bx.fit(**given, test=tmp_path / "test", surrogate="faithful")
    assert not (tmp_path / "fitted").exists()
    fitted = bx.fit(**given, test=tmp_path / "test", surrogate_args={"n_estimators": 30})
    made = replace(paths, explainer=tmp_path / "fitted/scoring_explainer.pkl")
    engineered, raw = sdk_lines(made, paths.train, rows)
    assert_are(lines_of(fitted.held_out, "engineered"), engineered, paths.grain)
    assert_are(lines_of(fitted.held_out, "raw"), raw, paths.grain)
    assert fitted.held_out.info["fidelity"]["r2"] > 0.9
    by_bundle = run(replace(paths, explainer=tmp_path / "fitted"), tmp_path / "test", tmp_path / "out")
    pd.testing.assert_frame_equal(lines_of(by_bundle, "raw"), lines_of(fitted.held_out, "raw"), rtol=0, atol=1e-12)


class TestEnsembles:
    def test_of_regressions_is_explained_at_the_latest_origin(
        self, forecasting: Callable[[str], Any], tmp_path: Path
    ) -> None:
        from tests.automl_fixtures.forecasting import build_forecasting, sdk_lines, voting

        paths = build_forecasting(tmp_path / "model", looks_back=True, wrap=voting)
        rows = next_days(paths)
        result = run(paths, write(tmp_path / "in", rows, files=2), tmp_path / "out", partition_rows=6)
        engineered, raw = sdk_lines(paths, paths.train, rows)
        assert len(engineered) == len(rows)
        assert_are(lines_of(result, "engineered"), engineered, paths.grain)
        assert_are(lines_of(result, "raw"), raw, paths.grain)
        assert any("latest origin" in decision for decision in result.info["decisions"])

    def test_with_a_classical_member_is_refused(self, forecasting: Callable[[str], Any], tmp_path: Path) -> None:
        from tests.automl_fixtures.forecasting import classical_learner, voting

        def wrap(features: pd.DataFrame, target: np.ndarray, learner: Any) -> Any:
            return voting(features, target, classical_learner("SeasonalNaive")(features, target, learner))

        assert_refused(wrap, "SeasonalNaive, a member of the ensemble PreFittedSoftVotingRegressor", tmp_path)


@pytest.mark.parametrize(
    "name", ["Naive", "SeasonalNaive", "Average", "SeasonalAverage", "ExponentialSmoothing", "AutoArima", "Arimax"]
)
def test_a_classical_model_is_refused(name: str, tmp_path: Path) -> None:
    """The SDK explains random numbers instead, without a word."""
    from tests.automl_fixtures.forecasting import classical_learner

    assert_refused(classical_learner(name), name, tmp_path)


def assert_refused(wrap: Any, what: str, folder: Path) -> None:
    import joblib

    from tests.automl_fixtures.forecasting import demand, pipeline
    from tests.automl_fixtures.quiet import quiet

    with quiet():
        model, _, later, _ = pipeline(demand(stores=2), looks_back=False, wrap=wrap)
    joblib.dump(model, folder / "model.pkl")
    with pytest.raises(ArtifactError, match=f"{what}, which has no explanation: .*Pass a forecasting model"):
        bx.explain_dataset(
            input=write(folder / "in", later), model=folder / "model.pkl", output=folder / "out", scheduler="sync"
        )
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "name, known_as",
    [
        ("azureml.training.tabular.models.forecasting_models.ProphetModel", "Prophet"),
        ("azureml.training.tabular.models._timeseries._prophet_model.ProphetModel", "Prophet"),
        ("azureml.contrib.automl.dnn.forecasting.wrapper.forecast_tcn_wrapper.ForecastTCNWrapper", "TCNForecaster"),
        ("azureml.contrib.automl.dnn.forecasting.wrapper.deep4cast_wrapper.Deep4CastWrapper", "TCNForecaster"),
    ],
)
def test_a_model_that_the_stack_cannot_build_is_refused_by_its_pickle(
    name: str, known_as: str, forecasting: Callable[[str], Any], tmp_path: Path
) -> None:
    """Prophet and PyTorch are no part of the stack; a pickle names its classes whether or not they are there."""
    module, _, of_class = name.rpartition(".")
    (tmp_path / "model.pkl").write_bytes(f"c{module}\n{of_class}\n)\x81.".encode())
    with pytest.raises(ArtifactError, match=f"holds the forecasting model {known_as}, which has no explanation"):
        bx.explain_dataset(
            input=write(tmp_path / "in", next_days(forecasting("plain"))), model=tmp_path / "model.pkl",
            output=tmp_path / "out", scheduler="sync",
        )  # fmt: skip
