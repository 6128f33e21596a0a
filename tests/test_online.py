"""The scoring script under the real inference server: a run's own values, and 400 for what cannot be answered."""

import importlib.util
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import batch_explain as bx
from tests.comparing import assert_close, values_of
from tests.conftest import Engineered
from tests.online_server import SCRIPT, Server

pytestmark = [
    pytest.mark.skipif(not SCRIPT.exists(), reason="the jobs are not part of this distribution"),
    pytest.mark.skipif(
        importlib.util.find_spec("azureml_inference_server_http") is None and not os.environ.get("CI"),
        reason="needs the [online] extra",
    ),
]
NAMES = [f"f{i}" for i in range(12)]
GOOD = dict.fromkeys(NAMES, 0.5)


def ask(server: Server, path: str, body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(server.url + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    return status, text.decode() if path == "/" else json.loads(text)


def score(server: Server, data: Any) -> dict[str, Any]:
    status, answer = ask(server, "/score", json.dumps(data).encode())
    assert status == 200, answer
    return dict(answer)


@pytest.fixture(scope="module")
def served(engineered: Engineered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("online")
    bx.export_bundle(engineered.explainer, folder / "models" / "bundle")
    server = Server(folder, folder / "models")
    try:
        yield server.wait()
    finally:
        server.stop()


def test_a_bundles_answers_are_a_runs_values(served: Server, engineered: Engineered, tmp_path: Path) -> None:
    frame = engineered.frame.head(40)
    frame.to_parquet(tmp_path / "rows.parquet")
    run = bx.explain_dataset(
        input=tmp_path / "rows.parquet", explainer=engineered.explainer, output=tmp_path / "out", scheduler="sync"
    )
    expected = values_of(run, "engineered", NAMES)[0]
    assert_close(expected, engineered.booster.predict(frame, pred_contrib=True)[:, :-1], 1e-9)
    split = json.loads(frame.to_json(orient="split", double_precision=15))
    records = [dict(zip(split["columns"], line, strict=True)) for line in split["data"]]
    columns = {name: [record[name] for record in records] for name in NAMES}
    for data in (records, {"data": records}, {"input_data": split}, columns, {"data": columns}, split):
        found = score(served, data)
        assert found["engineered_features"] == NAMES and found["predictions"] is None
        assert_close(np.array(found["engineered_local_importance_values"]), expected, 1e-9)
        margins = np.array(found["margins"])[0]
        assert_close((expected.sum(axis=1) + found["expected_values"][0])[None], margins[None], 1e-9)
        for row, reasons in enumerate(found["reasons"]):
            best = np.argsort(-abs(expected[row]), kind="stable")[:5]
            assert [each["feature"] for each in reasons] == [NAMES[at] for at in best]


def test_many_rows_at_once(served: Server, engineered: Engineered) -> None:
    rows = np.random.default_rng(1).normal(size=(10_000, 12))
    found = score(served, {"columns": NAMES, "data": rows.tolist()})
    expected = engineered.booster.predict(rows, pred_contrib=True)[:, :-1]
    assert_close(np.array(found["engineered_local_importance_values"]), expected, 1e-9)


BAD: list[bytes] = [
    b"", b"nonsense", b"null", b"1", b'"text"', b"true", b"[]", b"{}", b"[1]", b"[null]", b"[[1, 2]]", b'{"data": 1}',
    b'{"data": []}', b'{"data": {}}', b'{"data": null}', b"[{}]", b'{"columns": 1, "data": []}', b"\xff\xfe",
    b'{"columns": ["a"], "data": 3}', b'{"columns": [1], "data": [[1]]}', b"[" * 20_000, b'{"a": 1, "a": 2}',
    json.dumps({"data": [GOOD], "other": 1}).encode(),
    json.dumps([GOOD, {"f0": 1}]).encode(),
    json.dumps([GOOD, 3]).encode(),
    json.dumps(GOOD).encode(),
    json.dumps({**{name: [1.0] for name in NAMES}, "f3": [1.0, 2.0]}).encode(),
    json.dumps({"columns": NAMES, "data": [[1.0]]}).encode(),
    json.dumps({"columns": NAMES, "data": [1]}).encode(),
    *(
        json.dumps([{**GOOD, "f3": value}]).encode()
        for value in ("text", "", True, [1], {}, {"a": 1}, [], 10**400, float("nan"), float("inf"), "\ud800")
    ),
    json.dumps([GOOD, {**GOOD, "f3": "text"}]).encode(),
    json.dumps([GOOD]).replace("0.5", "1e999").encode(),
]  # fmt: skip


def test_requests_at_once_are_answered_together(tmp_path: Path) -> None:
    """Each gets the answer that it gets alone, a bad row spoils no other's; fewer batches than requests."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=300), "b": rng.normal(size=300), "kind": rng.choice(["u", "v"], 300)})
    columns = make_column_transformer((OneHotEncoder(), ["kind"]), (StandardScaler(), ["a", "b"]))
    forest = RandomForestClassifier(5, max_depth=4, random_state=0)
    model = make_pipeline(columns, forest).fit(frame, frame.a + (frame.kind == "u") > 0)
    joblib.dump(model, tmp_path / "model.pkl")
    scorer = bx.load_scorer(model=tmp_path / "model.pkl")
    rows = frame[:27].to_dict("records")
    rows[7]["kind"] = "unknown"
    bodies = [json.dumps({"data": rows[at : at + 1 + at % 3]}) for at in range(24)]
    alone = [scorer.answer(body) for body in bodies]
    assert [at for at, (status, _) in enumerate(alone) if status == 400] == [5, 7]
    batches: list[int] = []

    def slowly(table: pa.Table) -> Any:
        batches.append(table.num_rows)
        time.sleep(0.02)
        return explain(table)

    explain = scorer._together._explain
    scorer._together._explain = slowly
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(scorer.answer, bodies))
    assert len(batches) < 24 and max(batches) > 3
    for (status, text), (expected, answer) in zip(together, alone, strict=True):
        assert status == expected
        if status == 400:
            assert text == answer
            continue
        found, single = json.loads(text), json.loads(answer)
        for name in ("predictions", "raw_features", "outputs", "classes"):
            assert found[name] == single[name]
        ours, theirs = (
            [[each["feature"] for each in row] for row in answered["reasons"]] for answered in (found, single)
        )
        assert ours == theirs
        for name in ("engineered_local_importance_values", "raw_local_importance_values", "margins", "probabilities"):
            np.testing.assert_allclose(found[name], single[name], rtol=0, atol=1e-12)


def test_bad_bodies_are_refused_with_a_reason(served: Server) -> None:
    for body in BAD:
        status, answer = ask(served, "/score", body)
        if status == 200:  # true and false are numbers to a run of engineered features, too
            assert body == json.dumps([{**GOOD, "f3": True}]).encode(), body[:200]
            continue
        assert status == 400 and len(answer["message"]) > 20, (status, body[:200], answer)
    score(served, [GOOD])


def test_schema_and_health(served: Server) -> None:
    assert ask(served, "/") == (200, "Healthy")
    for version in ("2", "3"):
        status, schema = ask(served, f"/swagger.json?version={version}")
        assert status == 200 and "/score" in schema["paths"]
        text = json.dumps(schema)
        assert all(f'"{name}"' in text for name in [*NAMES, "predictions", "engineered_local_importance_values"])


@pytest.mark.automl
def test_automl_answers_are_the_sdks(
    automl: Callable[[str], Any], oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    paths, sdk = automl("binary"), oracle("binary")
    frame = pd.read_parquet(paths.raw).head(60)
    rows = json.loads(frame.to_json(orient="records", date_format="iso", double_precision=15))
    server = Server(tmp_path, paths.model.parent)
    try:
        found = score(server.wait(), {"data": rows})
    finally:
        server.stop()
    assert found["predictions"] == sdk.prediction[:60].tolist()
    assert_close(np.array(found["engineered_local_importance_values"]), sdk.engineered[0][:60], 1e-9)
    assert_close(np.array(found["raw_local_importance_values"]), sdk.raw[0][:60], 1e-9)
    assert found["engineered_features"] == sdk.engineered_features and found["raw_features"] == sdk.raw_features
