"""Bad input at the command line: the exit code, one paragraph that names the guilty thing and the cure, no output.

Each case is a good run with one thing spoiled: an option, a file of the dataset, the model, or the explainer.
"""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch_explain.cli import cli
from batch_explain.engine import cluster
from tests.conftest import HAS_AUTOML, once

ROOT = Path(__file__).parent.parent
CITIES = ["Bergen", "Oslo", "Tromso"]
ROWS = 60  # a.parquet: 0 to 39, in row groups of 20; b.parquet: 0 to 19


def rows(count: int = ROWS, seed: int = 0) -> pa.Table:
    """Good rows."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "customer": pa.array(np.arange(count) + 1000),
            "age": pa.array(rng.integers(18, 90, count)),
            "balance": pa.array(rng.normal(1000, 500, count)),
            "city": pa.array(rng.choice(CITIES, count).tolist()),
        }
    )


def replaced(table: pa.Table, name: str, values: Any, row: int | None = None) -> pa.Table:
    """The table with another column, or with one other value in it."""
    if row is not None:
        values = [*table[name].to_pylist()[:row], values, *table[name].to_pylist()[row + 1 :]]
    return table.set_column(table.schema.names.index(name), name, values if isinstance(values, pa.Array) else [values])


def renamed(table: pa.Table, old: str, new: str) -> pa.Table:
    return table.rename_columns([new if name == old else name for name in table.schema.names])


A, B = rows().slice(0, 40), rows().slice(40)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that refuse what they do not know, and LightGBM surrogates that split."""
    import joblib
    import lightgbm
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    folder = tmp_path_factory.mktemp("made")
    frame = rows(300, seed=1).to_pandas().drop(columns="customer")
    score = frame.age / 20 + frame.balance / 500 + (frame.city == "Oslo")
    classes = np.digitize(score, np.quantile(score, [0.4, 0.7]))
    for name, target, learner in [
        ("model", classes > 0, LogisticRegression()),
        ("three_classes", classes, LogisticRegression()),
        ("regression", score, LinearRegression()),
    ]:
        columns = ColumnTransformer(
            [("number", StandardScaler(), ["age", "balance"]), ("word", OneHotEncoder(), ["city"])],
            sparse_threshold=0,
            verbose_feature_names_out=False,
        )
        model = Pipeline([("columns", columns), ("learner", learner)]).fit(frame, target)
        joblib.dump(model, folder / f"{name}.pkl")
        names, engineered = list(columns.get_feature_names_out()), columns.transform(frame)
    options = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5}
    for name, extra, target, data, features in [
        ("surrogate", {}, score, engineered, names),
        ("narrow", {}, score, engineered[:, :3], names[:3]),
        ("multiclass", {"objective": "multiclass", "num_class": 3}, classes, engineered, names),
        ("linear_tree", {"linear_tree": True}, score, engineered, names),
    ]:
        dataset = lightgbm.Dataset(data, target, feature_name=features, params=options | extra)
        booster = lightgbm.train({"objective": "regression", **options, **extra}, dataset, 10)
        assert booster.feature_importance().any()
        booster.save_model(folder / f"{name}.txt")
    pq.write_table(pa.table(dict(zip(names, engineered.T, strict=True))), folder / "engineered.parquet")
    return folder


# On the list of what models need, and not installed here.
ABSENT = ("xgboost", "sklearn", "XGBClassifier")
if not HAS_AUTOML:
    ABSENT = ("sklearn_pandas", "dataframe_mapper", "DataFrameMapper")


@dataclass
class Place:
    """A folder with the input of a good run, and that run's options.

    Attributes
    ----------
    root : Path
        Holds ``rows/a.parquet`` and ``rows/b.parquet``.
    made : Path
        Models and explainers; read only.
    options : dict
        Option -> value, values where it may be repeated; None leaves it out.
    """

    root: Path
    made: Path
    options: dict[str, Any]

    def write(self, name: str, table: pa.Table, **options: Any) -> Path:
        """Write a table below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **options)
        return path

    def put(self, name: str, content: bytes | str) -> Path:
        """Write a file below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def use(self, **names: str) -> None:
        """Take other artifacts than the good run's."""
        self.options |= {option: str(self.made / name) for option, name in names.items()}

    @property
    def output(self) -> Path:
        return Path(self.options["output"])

    def arguments(self) -> list[str]:
        """The command line."""
        arguments = ["run", "--quiet"]
        for name, value in self.options.items():
            for one in [] if value is None else value if isinstance(value, list) else [value]:
                arguments += [f"--{name.replace('_', '-')}"] + ([] if one is True else [str(one)])
        return arguments

    def snapshot(self) -> dict[str, bytes | None]:
        """Everything below the root, with contents."""
        found = sorted(self.root.rglob("*"))
        return {str(path): path.read_bytes() if path.is_file() else None for path in found}


@pytest.fixture
def place(tmp_path: Path, made: Path) -> Place:
    options = {"input": tmp_path / "rows", "output": tmp_path / "out", "scheduler": "sync", "id_columns": "customer"}
    here = Place(tmp_path, made, options)
    here.use(model="model.pkl", explainer="surrogate.txt")
    here.write("rows/a.parquet", A, row_group_size=20, compression="snappy")
    here.write("rows/b.parquet", B)
    return here


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes
    ----------
    name : str
    code : int
        The exit code.
    says : tuple of str
        What the message must name: the guilty thing and what to do.
    options : dict
        Options other than the good run's; ``{root}`` is the case's folder.
    spoil : callable, optional
        Spoils the place.
    """

    name: str
    code: int
    says: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[Place], Any] = lambda place: None

    def prepare(self, place: Place) -> None:
        self.spoil(place)
        for name, value in self.options.items():
            place.options[name] = value.format(root=place.root) if isinstance(value, str) else value


def damage_pages(place: Place, file: str, group: int) -> None:
    """Overwrite the column data of a row group; the footer stays."""
    path = place.root / file
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(2)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


def earlier_run(place: Place) -> None:
    """A finished run in the output."""
    assert run(place).exit_code == 0
    place.options["overwrite"] = True


def both(place: Place, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change both files."""
    for name, table in (("a", A), ("b", B)):
        place.write(f"rows/{name}.parquet", change(table))


def engineered(place: Place) -> None:
    """A run without a model, whose input holds the engineered features."""
    place.options |= {"input": place.made / "engineered.parquet", "model": None, "id_columns": None}


def config(content: bytes | str) -> Callable[[Place], Any]:
    def spoil(place: Place) -> None:
        place.options["config"] = place.put("run.toml", content)

    return spoil


def text_of(place: Place, change: Callable[[str], str], name: str = "bad.txt") -> None:
    """The surrogate's text, changed."""
    place.options["explainer"] = place.put(name, change((place.made / "surrogate.txt").read_text()))


def pickled(option: str, content: Any) -> Callable[[Place], Any]:
    def spoil(place: Place) -> None:
        place.options[option] = place.put(
            f"{option}.pkl", content if isinstance(content, bytes) else pickle.dumps(content)
        )

    return spoil


def unfitted() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(LogisticRegression())


def unfitted_lightgbm() -> Any:
    from lightgbm import LGBMRegressor

    return LGBMRegressor()


def hive(place: Place, *keys: str, **columns: Any) -> None:
    for number, key in enumerate(keys):
        table = B
        for name, values in columns.items():
            table = table.append_column(name, [values])
        place.write(f"hive/{key}/{number}.parquet" if key else f"hive/{number}.parquet", table)
    place.options["input"] = place.root / "hive"


INPUT = [
    Case("input_not_given", 2, ("'input' is missing",), {"input": None}),
    Case("input_empty_text", 2, ("'input' is empty", "Pass a path"), {"input": ""}),
    Case("input_missing", 2, ("nothing at", "nowhere", "Check the path"), {"input": "{root}/nowhere"}),
    Case("input_empty_folder", 2, ("no parquet file in", "empty", "Name a parquet file"), {"input": "{root}/empty"},
         lambda p: (p.root / "empty").mkdir()),
    Case("input_of_hidden_files", 2, ("no parquet file in", "begin with '_' or '.'"), {"input": "{root}/hidden"},
         lambda p: p.write("hidden/_a.parquet", A)),
    Case("glob_matches_nothing", 2, ("no parquet file in", "*.parq,", "such as"), {"input": "{root}/rows/*.parq,"}),
    Case("input_is_csv_without_end", 2, ("rows.csv", "not a readable CSV", "row 49, column 'age'", "Write it again"),
         {"input": "{root}/rows.csv"}, lambda p: p.put("rows.csv", "customer,age\n" + "1,2\n" * 49 + '1,"2\n')),
    Case("input_is_text", 2, ("rows.txt", "not a readable parquet file", "Write it again"),
         {"input": "{root}/rows.txt"}, lambda p: p.put("rows.txt", "customer,age\n1,2\n" * 50)),
    Case("file_truncated", 2, ("b.parquet", "not a readable parquet file", "Write it again"),
         spoil=lambda p: p.put("rows/b.parquet", (p.root / "rows/b.parquet").read_bytes()[:-100])),
    Case("file_of_zero_bytes", 2, ("b.parquet", "not a readable parquet file", "0 bytes"),
         spoil=lambda p: p.put("rows/b.parquet", b"")),
    Case("file_of_other_kind", 2, ("notes.txt", "not a readable parquet file", "glob"),
         spoil=lambda p: p.put("rows/notes.txt", "these rows are from May\n")),
    Case("file_name_is_not_utf8", 2, (r"b\udcff.parquet", "not UTF-8", "Rename it"),
         spoil=lambda p: os.rename(p.root / "rows/b.parquet", os.fsencode(p.root / "rows") + b"/b\xff.parquet")),
    Case("protocol_unknown", 2, ("nope://x", "cannot be reached", "Check the address"), {"input": "nope://x/rows"}),
    Case("secrets_of_an_account", 2, ("abfs://c/rows?sig=***",), {"input": "abfs://c/rows?sig=hush"}),
    Case("password_in_a_url", 2, ("ftp://me:***@127.0.0.1", "cannot be reached", "Check the address"),
         {"input": "ftp://me:hush@127.0.0.1:1/rows"}),
]  # fmt: skip

COLUMNS = [
    Case("column_missing", 2,
         ("1 column that the model needs is missing from b.parquet: 'balance' (", "may be 'balances')", "Add them"),
         spoil=lambda p: p.write("rows/b.parquet", renamed(B, "balance", "balances"))),
    Case("columns_missing", 2, ("2 columns that the model needs are missing from a.parquet: 'age', 'city'", "Add them"),
         spoil=lambda p: p.write("rows/a.parquet", A.select(["customer", "balance"]))),
    Case("column_in_capitals", 2, ("a.parquet", "'age' may be 'AGE'", "--columns-map"),
         spoil=lambda p: p.write("rows/a.parquet", renamed(A, "age", "AGE"))),
    Case("column_twice", 2, ("b.parquet", "more than one column", "'age'", "distinct names"),
         spoil=lambda p: p.write("rows/b.parquet", B.append_column("age", B["age"]))),
    Case("column_of_lists", 2, ("'balance' in b.parquet", "list<", "Write the files"),
         spoil=lambda p: p.write("rows/b.parquet", replaced(B, "balance", pa.array([[1.0]] * 20)))),
    Case("types_differ_between_files", 2, ("'age' is integer in a.parquet but text in b.parquet", "Write the files"),
         spoil=lambda p: p.write("rows/b.parquet", replaced(B, "age", B["age"].combine_chunks().cast(pa.string())))),
    Case("hive_key_is_a_column", 2, ("'age'", "age=5/0.parquet", "key of its folder", "Remove one"),
         spoil=lambda p: hive(p, "age=5")),
    Case("hive_key_is_an_id_column", 2, ("'customer'", "key of its folder", "Remove one"),
         spoil=lambda p: hive(p, "customer=5")),
    Case("file_outside_the_hive", 2, ("1.parquet does not lie in", "'region=…'", "Move it"),
         {"id_columns": "region"}, lambda p: hive(p, "region=5", "")),
    Case("map_without_equals", 2, ("--columns-map is 'age'", "Write MODEL=FILE"), {"columns_map": "age"}),
    Case("map_to_nothing", 2, ("--columns-map is 'age='", "Write MODEL=FILE"), {"columns_map": "age="}),
    Case("map_of_unknown_column", 2, ("--columns-map names 'aeg'", "does not need", "'age'"),
         {"columns_map": "aeg=age"}),
    Case("map_to_missing_column", 2, ("a.parquet", "'years'", "--columns-map"), {"columns_map": "age=years"}),
    Case("map_twice", 2, ("model column 'age' more than once",), {"columns_map": ["age=age", "age=balance"]}),
    Case("map_twice_the_same_file_column", 2, ("file column 'age' more than once", "Map each column once"),
         {"columns_map": ["age=age", "balance=age"]}),
    Case("engineered_columns_missing", 2, ("'city_Oslo'", "a.parquet", "pass the --model too"), {"model": None}),
    Case("engineered_column_is_text", 2, ("'age'", "engineered features are numbers"), {"input": "{root}/text.parquet"},
         lambda p: (engineered(p), p.write("text.parquet", replaced(
             pq.read_table(p.made / "engineered.parquet"), "age", pa.array(["x"] * 300))))),
]  # fmt: skip

IDS = [
    Case("id_missing", 2, ("'custoner'", "a.parquet", "may be 'customer'", "--id-columns"), {"id_columns": "custoner"}),
    Case("id_missing_in_one_file", 2, ("'customer'", "b.parquet", "--id-columns"),
         spoil=lambda p: p.write("rows/b.parquet", B.drop_columns(["customer"]))),
    Case("id_twice", 2, ("--id-columns names 'customer' more than once",), {"id_columns": "customer,customer"}),
    Case("id_without_name", 2, ("--id-columns has an empty name", "single commas"), {"id_columns": "customer,,age"}),
    Case("id_types_differ", 2, ("'customer'", "int64, string", "with one type"),
         spoil=lambda p: p.write("rows/b.parquet", replaced(B, "customer", pa.array(["c"] * 20)))),
    Case("id_doubled_in_a_file", 2, ("a.parquet", "more than one column", "'customer'"),
         spoil=lambda p: p.write("rows/a.parquet", A.append_column("customer", A["customer"]))),
    Case("id_is_a_feature", 2, ("'age'", "would collide", "raw table", "Use another"),
         {"id_columns": "age", "outputs": "raw"}),
    Case("id_is_called_prediction", 2, ("'prediction'", "would collide", "predictions table", "Use another"),
         {"id_columns": "prediction"}, lambda p: both(p, lambda table: renamed(table, "customer", "prediction"))),
    Case("id_is_called_probability", 2, ("'probability_True'", "would collide", "Use another"),
         {"id_columns": "probability_True"},
         lambda p: both(p, lambda table: renamed(table, "customer", "probability_True"))),
    Case("id_with_line_break", 2, ("'cust omer'", "a.parquet", "--id-columns"), {"id_columns": "cust\nomer"}),
]  # fmt: skip

ARTIFACTS = [
    Case("explainer_not_given", 2, ("cannot be explained directly", "LogisticRegression", "Pass the --explainer"),
         {"explainer": None}),
    Case("neither_model_nor_explainer", 2, ("'explainer' is missing, and so is 'model'",),
         {"explainer": None, "model": None}),
    Case("model_missing", 2, ("no model at", "no.pkl", "Check the path"), {"model": "{root}/no.pkl"}),
    Case("explainer_missing", 2, ("no explainer at", "no.pkl", "Check the path"),
         {"explainer": "{root}/no.pkl"}),
    Case("model_is_a_folder", 2, ("it is a folder without bundle.json", "Name the pickle"), {"model": "{root}/rows"}),
    Case("explainer_is_a_folder", 2, ("rows is a folder", "Name a scoring_explainer.pkl"),
         {"explainer": "{root}/rows"}),
    Case("explainer_is_a_dict", 2, ("explainer.pkl holds a dict", "no explainer", "scoring_explainer.pkl"),
         spoil=pickled("explainer", {"explain": 1})),
    Case("explainer_is_the_model", 2, ("model.pkl holds a Pipeline", "no explainer", "scoring_explainer.pkl"),
         spoil=lambda p: p.use(explainer="model.pkl")),
    Case("explainer_is_empty", 2, ("explainer.pkl", "not a readable pickle", "Copy it again"),
         spoil=pickled("explainer", b"")),
    Case("explainer_is_some_text", 2, ("explainer.pkl", "explainer", "again"),
         spoil=pickled("explainer", b"age 1\nbalance 2\n")),
    Case("explainer_is_damaged", 2, ("explainer.pkl", "not a readable pickle", "Copy it again"),
         spoil=pickled("explainer", pickle.dumps({"a": list(range(100))})[:-40])),
    Case("model_is_damaged", 2, ("model.pkl", "not a readable pickle", "Copy it again"),
         spoil=lambda p: pickled("model", (p.made / "model.pkl").read_bytes()[:-300])(p)),
    Case("model_is_random_bytes", 2, ("model.pkl", "again"),
         spoil=pickled("model", np.random.default_rng(0).bytes(2000))),
    Case("model_needs_a_package", 2, ("model.pkl needs a package", f"No module named '{ABSENT[0]}'", "made with"),
         spoil=pickled("model", "c{}.{}\n{}\n.".format(*ABSENT).encode())),
    Case("model_of_other_versions", 2, ("model.pkl cannot be opened", "_gb_losses", "versions it was made with"),
         spoil=pickled("model", b"csklearn.ensemble._gb_losses\nLeastSquaresError\n.")),
    Case("model_of_a_class_of_its_own", 2, ("model.pkl asks for nowhere.at_all.Model", "--trust nowhere.at_all.Model"),
         spoil=pickled("model", b"cnowhere.at_all\nModel\n.")),
    Case("model_is_a_list", 2, ("model is a list", "no predict", "Pass the fitted pipeline"),
         spoil=pickled("model", [1, 2])),
    Case("model_is_a_class", 2, ("no predict", "Pass the fitted pipeline"),
         spoil=lambda p: pickled("model", type(unfitted()))(p)),
    Case("model_is_not_fitted", 2, ("Pipeline that is not fitted", "Pass the fitted pipeline"),
         spoil=lambda p: pickled("model", unfitted())(p)),
    Case("explainer_is_not_fitted", 2, ("explainer.pkl holds a LGBMRegressor that is not fitted", "Fit it"),
         spoil=lambda p: pickled("explainer", unfitted_lightgbm())(p)),
    Case("features_in_another_order", 2, ("another order", "number 0: 'age' in the model", "this very model"),
         spoil=lambda p: text_of(p, lambda text: re.sub(
             "(?<=feature_names=)(.*)", lambda found: " ".join(reversed(found[0].split())), text))),
    Case("feature_counts_differ", 2, ("5 engineered features", "explains 3", "do not belong together"),
         spoil=lambda p: p.use(explainer="narrow.txt")),
    Case("three_classes_one_output", 2, ("3 classes", "one output", "do not belong together", "this very model"),
         spoil=lambda p: p.use(model="three_classes.pkl")),
    Case("two_classes_three_outputs", 2, ("2 classes", "3 outputs", "do not belong together", "this very model"),
         spoil=lambda p: p.use(explainer="multiclass.txt")),
    Case("regression_three_outputs", 2, ("regression", "3 outputs", "do not belong together", "this very model"),
         spoil=lambda p: p.use(model="regression.pkl", explainer="multiclass.txt")),
    Case("linear_trees", 2, ("linear_tree=true", "linear_tree=false"),
         spoil=lambda p: p.use(explainer="linear_tree.txt")),
    Case("surrogate_cut_short", 2, ("bad.txt", "not complete", "Booster.save_model"),
         spoil=lambda p: text_of(p, lambda text: text[: len(text) // 2])),
    Case("surrogate_without_last_trees", 2, ("bad.txt", "not complete", "Booster.save_model"),
         spoil=lambda p: text_of(p, lambda text: text[: text.index("Tree=7")] + text[text.index("end of trees") :])),
    Case("surrogate_damaged", 2, ("bad.txt", "is damaged", "'threshold' of tree 0", "Booster.save_model"),
         spoil=lambda p: text_of(p, lambda text: text.replace("\nthreshold=", "\nthrushold="))),
    Case("surrogate_is_only_a_beginning", 2, ("bad.txt", "LightGBM model text", "Booster.save_model"),
         spoil=lambda p: text_of(p, lambda text: "tree\nversion=v4\n")),
    Case("surrogate_is_not_utf8", 2, ("bad.txt", "cannot be read", "Booster.save_model"),
         spoil=lambda p: p.options.update(explainer=p.put("bad.txt", b"tree\n\xff\xfe\x00"))),
]  # fmt: skip

OUTPUT = [
    Case("output_not_given", 2, ("'output' is missing",), {"output": None}),
    Case("output_not_empty", 2, ("out is not empty", "Choose another place"), spoil=lambda p: p.put("out/mine", "x")),
    Case("output_holds_a_run", 2, ("out is not empty", "--overwrite"), {"overwrite": None}, earlier_run),
    Case("output_is_a_file", 2, ("out is a file", "Name a folder"), spoil=lambda p: p.put("out", "x")),
    Case("output_in_the_input", 2, ("rows/out lies inside the input", "beside"), {"output": "{root}/rows/out"}),
    Case("output_is_the_input", 2, ("lies inside the input", "beside"), {"output": "{root}/rows"}),
    Case("output_is_a_link_into_the_input", 2, ("lies inside the input", "beside"), {"output": "{root}/link/out"},
         lambda p: (p.root / "link").symlink_to("rows")),
    Case("input_in_the_output", 2, ("rows lies inside the output", "Choose another"), {"output": "{root}"}),
    Case("input_file_in_the_output", 2, ("lies inside the output", "Choose another"),
         {"input": "{root}/rows/a.parquet", "output": "{root}/rows"}),
    Case("output_below_a_file", 2, ("file/out cannot be made", "is a file", "another place"),
         {"output": "{root}/file/out"}, lambda p: p.put("file", "x")),
    Case("output_not_writable", 2, ("/proc/nope cannot be written", "another place"), {"output": "/proc/nope"}),
    Case("overwrite_what_no_run_wrote", 2, ("out is not empty", "no run of this tool", "empty it yourself"),
         {"overwrite": True}, lambda p: p.put("out/mine", "x")),
    Case("overwrite_a_run_and_more", 2, ("out holds a run", "'mine'", "Move these away"),
         spoil=lambda p: (earlier_run(p), p.put("out/mine", "x"))),
    Case("overwrite_the_model", 2, ("model", "raw/model.pkl lies inside the output", "Move it"),
         spoil=lambda p: (earlier_run(p), p.options.update(
             model=p.put("out/raw/model.pkl", (p.made / "model.pkl").read_bytes())))),
    Case("overwrite_keeps_the_run_until_the_plan_stands", 2, ("'balance'", "a.parquet"),
         spoil=lambda p: (earlier_run(p), p.write("rows/a.parquet", A.drop_columns(["balance"])))),
]  # fmt: skip

OPTIONS = [
    Case("outputs_unknown", 2, ("--outputs is 'rwa'", "predictions, engineered, raw"), {"outputs": "predictions,rwa"}),
    Case("raw_without_map", 2, ("--outputs names 'raw'", "feature map", "Leave it out"),
         {"outputs": "engineered,raw"}, engineered),
    Case("predictions_without_model", 2, ("--outputs names 'predictions'", "no --model", "Leave it out"),
         {"outputs": "predictions"}, engineered),
    Case("scheduler_unknown", 2, ("--scheduler is 'dask'", "Use processes, threads, sync"), {"scheduler": "dask"}),
    Case("workers_0", 2, ("--workers is 0", "at least 1"), {"workers": "0"}),
    Case("workers_below_0", 2, ("--workers is -2", "at least 1"), {"workers": "-2"}),
    Case("partition_rows_x", 2, ("--partition-rows is 'x'", "whole number"), {"partition_rows": "x"}),
    Case("batch_rows_1e3", 2, ("--batch-rows is '1e3'", "whole number"), {"batch_rows": "1e3"}),
    Case("limit_0", 2, ("--limit is 0", "at least 1"), {"limit": "0"}),
    Case("dtype_unknown", 2, ("--dtype is 'float16'", "float64, float32"), {"dtype": "float16"}),
    Case("compression_unknown", 2, ("--compression is 'gzip'", "snappy, zstd, none"), {"compression": "gzip"}),
    Case("check_unknown", 2, ("--check is 'none'", "sample, all"), {"check": "none"}),
    Case("config_missing", 2, ("no.toml cannot be read", "Check the path"), {"config": "{root}/no.toml"}),
    Case("config_is_a_folder", 2, ("rows cannot be read", "Check the path"), {"config": "{root}/rows"}),
    Case("config_not_toml", 2, ("run.toml is not TOML", "line 1"), spoil=config("limit: 5\n")),
    Case("config_not_utf8", 2, ("run.toml is not TOML", "Write lines such as"),
         spoil=config("limit = 5\n".encode("utf-16"))),
    Case("config_unknown_key", 2, ("'limits'", "Known options are", "limit"), spoil=config("limits = 5\n")),
    Case("config_table", 2, ("'run'", "Known options are"), spoil=config("[run]\nlimit = 5\n")),
    Case("config_unknown_log_format", 2, ("--log-format is 'xml'", "text or json"), spoil=config("log-format = 'xml'")),
    Case("config_limit_not_a_number", 2, ("--limit is 'many'", "whole number"), spoil=config("limit = 'many'\n")),
    Case("config_check_not_text", 2, ("--check is", "sample, all"), spoil=config("check = true\n")),
    Case("config_columns_map_not_a_list", 2, ("--columns-map is 5", "MODEL=FILE"), spoil=config("columns-map = 5\n")),
    Case("config_columns_map_of_numbers", 2, ("--columns-map is 5", "MODEL=FILE"), spoil=config("columns-map = [5]\n")),
    Case("config_id_columns_not_a_list", 2, ("--id-columns is 5", "commas"),
         {"id_columns": None}, config("id-columns = 5\n")),
    Case("config_scheduler_not_text", 2, ("--scheduler is '5'", "Use processes"),
         {"scheduler": None}, config("scheduler = 5\n")),
    Case("config_overwrite_not_a_boolean", 2, ("overwrite is 'no'", "true or false"), {"overwrite": None},
         lambda p: (earlier_run(p), config("overwrite = 'no'\n")(p))),
]  # fmt: skip

RUN = [
    Case("pages_damaged", 3, ("Rows 20 to 40 of a.parquet", "cannot be read", "write it again"), {"partition_rows": 20},
         lambda p: damage_pages(p, "rows/a.parquet", 1)),
    Case("pages_of_the_first_rows_damaged", 3, ("a.parquet", "cannot be read", "write it again"),
         spoil=lambda p: damage_pages(p, "rows/a.parquet", 0)),
    Case("unknown_category", 3, ("row 11 of b.parquet", "unknown categories ['Paris']", "remove the row"),
         spoil=lambda p: p.write("rows/b.parquet", replaced(B, "city", "Paris", 11))),
    Case("text_for_a_number", 3, ("row 0 of a.parquet", "could not convert string to float: 'old'", "the row"),
         spoil=lambda p: both(p, lambda table: replaced(table, "age", pa.array(["old"] * len(table))))),
    Case("infinite_number", 3, ("row 3 of b.parquet", "infinity", "the row"),
         spoil=lambda p: p.write("rows/b.parquet", replaced(B, "balance", float("inf"), 3))),
]  # fmt: skip

CASES = [*INPUT, *COLUMNS, *IDS, *ARTIFACTS, *OUTPUT, *OPTIONS, *RUN]


def run(place: Place) -> Any:
    return CliRunner().invoke(cli, place.arguments())


def assert_refused(place: Place, case: Case, code: int, stderr: str, before: dict[str, bytes | None]) -> None:
    """What every user of a failed run must get."""
    assert code == case.code, stderr
    assert stderr.startswith("batch-explain: ")
    assert stderr.endswith(".\n")
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    assert "bug in batch-explain" not in stderr
    assert "hush" not in stderr
    for text in case.says:
        assert text in stderr, f"{text!r} is not in: {stderr}"
    if code == 2:
        assert place.snapshot() == before
    else:
        assert not (place.output / "_SUCCESS").exists()


def test_the_good_run_is_good(place: Place) -> None:
    """Else every case would fail for a reason of its own."""
    result = run(place)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (place.output / "_SUCCESS").exists()
    info = json.loads((place.output / "run.json").read_text())
    assert info["rows"]["explained"] == ROWS
    assert list(info["tables"]) == ["predictions", "engineered", "raw"]


def test_names_are_distinct() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused(case: Case, place: Place) -> None:
    case.prepare(place)
    before = place.snapshot()
    result = run(place)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert_refused(place, case, result.exit_code, result.stderr, before)


@pytest.mark.parametrize("file", ["a", "b"])
@pytest.mark.parametrize("row", [0, 1, 6, 7, 13, 19])
def test_the_row_that_predict_refuses_is_named(row: int, file: str, place: Place) -> None:
    """Whatever batch and partition it is in; the row before and the row after are good."""
    table = A if file == "a" else B
    place.write(f"rows/{file}.parquet", replaced(table, "balance", None, row), row_group_size=20)
    place.options |= {"partition_rows": 13, "batch_rows": 7}
    case = Case("", 3, (f"cannot take row {row} of {file}.parquet", "NaN", "the row"))
    assert_refused(place, case, *answer(run(place)), {})


def test_the_first_of_several_bad_rows_is_named(place: Place) -> None:
    table = replaced(replaced(B, "city", "Paris", 15), "balance", None, 9)
    place.write("rows/b.parquet", table)
    assert_refused(place, Case("", 3, ("row 9 of b.parquet", "NaN")), *answer(run(place)), {})


def answer(result: Any) -> tuple[int, str]:
    return result.exit_code, result.stderr


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://127.0.0.1", "tls://h:1"])
def test_a_scheduler_that_is_not_there(address: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
    place.options["scheduler"] = address
    before = place.snapshot()
    case = Case("", 2, (f"scheduler at {address} cannot be reached", "Check the address"))
    assert_refused(place, case, *answer(run(place)), before)


def test_an_unneeded_column_may_be_anything(place: Place) -> None:
    """Doubled, nested or of another type in each file: it is not read."""
    for name, table, extra in (("a", A, pa.array([[1]] * 40)), ("b", B, pa.array(["x"] * 20))):
        doubled = table.append_column("note", [extra]).append_column("note", [extra])
        place.write(f"rows/{name}.parquet", doubled)
    assert answer(run(place)) == (0, "")


SUBPROCESS = [
    ("sync", "config_unknown_key"),
    ("sync", "password_in_a_url"),
    pytest.param("processes", "unknown_category", marks=once),
]


@pytest.mark.parametrize(("scheduler", "name"), SUBPROCESS)
def test_refused_in_a_process_of_its_own(scheduler: str, name: str, place: Place) -> None:
    """Nothing that a library prints, warns of or logs gets to the terminal."""
    case = next(case for case in CASES if case.name == name)
    case.prepare(place)
    place.options |= {"scheduler": scheduler, "partition_rows": 20, "workers": 2}
    before = place.snapshot()
    assert_refused(place, case, *in_a_process(place), before)


def in_a_process(place: Place) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "batch_explain", *place.arguments()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=place.root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


# Genuine AutoML models: what their own code would coerce in silence, or refuse without a name.


@dataclass(frozen=True)
class AutoMLCase:
    """One bad input for a genuine AutoML kind.

    Attributes
    ----------
    name, kind : str
    code : int
        The exit code.
    says : tuple of str
    spoil : callable
        The kind's raw rows -> what is written instead.
    explainer : str, optional
        The kind whose explainer is passed.
    """

    name: str
    kind: str
    code: int
    says: tuple[str, ...]
    spoil: Callable[[pa.Table], pa.Table] = lambda table: table
    explainer: str | None = None


def cell(name: str, value: Any, row: int, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    """Another value in a row of a column, whose type may be another too."""

    def spoil(table: pa.Table) -> pa.Table:
        values = table[name].combine_chunks()
        values = values if kind is None else values.cast(kind)
        changed = [value if i == row else old for i, old in enumerate(values.to_pylist())]
        return replaced(table, name, pa.array(changed, values.type))

    return spoil


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: replaced(table, name, table[name].combine_chunks().cast(kind, safe=False))


AUTOML = [
    AutoMLCase("null_in_an_integer_category", "wide_binary", 3, ("'code' is null", "row 57 of rows.parquet", "the row"),
               cell("code", None, 57)),
    AutoMLCase("null_in_a_boolean", "wide_binary", 3, ("'flag' is null", "row 58 of rows.parquet", "the row"),
               cell("flag", None, 58)),
    AutoMLCase("infinite", "binary", 3, ("'balance' is infinite", "row 59 of rows.parquet", "the row"),
               cell("balance", float("-inf"), 59)),
    AutoMLCase("words_in_an_integer_column", "binary", 3, ("'age' is 'forty', not a number", "row 60 of", "the row"),
               cell("age", "forty", 60, pa.string())),
    AutoMLCase("fraction_in_an_integer_column", "binary", 3, ("'age' is 1.5", "row 61 of", "int64", "the row"),
               cell("age", 1.5, 61, pa.float64())),
    AutoMLCase("epoch_milliseconds", "binary", 2, ("'opened' in rows.parquet", "int64", "datetime64", "as a timestamp"),
               lambda table: cast("opened", pa.int64())(cast("opened", pa.timestamp("ms"))(table))),
    AutoMLCase("no_date", "binary", 3, ("'opened' is 'soon', not a date", "row 62 of rows.parquet", "the row"),
               cell("opened", "soon", 62, pa.string())),
    AutoMLCase("far_future", "binary", 3, ("'opened' is outside the years 1678 to 2262", "row 63 of", "the row"),
               cell("opened", pd.Timestamp("2020-01-01").to_pydatetime().replace(year=9999), 63, pa.timestamp("us"))),
    AutoMLCase("numbers_for_a_boolean", "wide_binary", 2, ("'flag' in rows.parquet", "int64", "bool", "trained types"),
               cast("flag", pa.int64())),
    AutoMLCase("column_missing", "binary", 2, ("'balance'", "rows.parquet", "may be 'Balance'", "--columns-map"),
               lambda table: renamed(table, "balance", "Balance")),
    AutoMLCase("explainer_of_fewer_features", "binary", 2, ("explains 8", "do not belong together", "this very model"),
               explainer="dense_regression"),
    AutoMLCase("explainer_of_other_features", "dense_regression", 2, ("another name", "do not belong together"),
               explainer="renamed"),
    AutoMLCase("explainer_of_other_outputs", "dense_regression", 2,
               ("regression", "3 outputs", "do not belong together"),
               explainer="dense_multiclass"),
]  # fmt: skip


def automl_place(kind: str, automl: Callable[[str], Any], folder: Path) -> tuple[Place, pa.Table]:
    paths = automl(kind)
    options = {"input": folder / "rows.parquet", "output": folder / "out", "scheduler": "sync"}
    place = Place(folder, paths.model.parent, {**options, "partition_rows": 50, "batch_rows": 20})
    place.use(model=paths.model.name, explainer=paths.explainer.name)
    return place, pq.read_table(paths.raw).slice(0, 100).replace_schema_metadata(None)


@pytest.mark.automl
@pytest.mark.parametrize("case", AUTOML, ids=lambda case: case.name)
def test_automl_refused(case: AutoMLCase, automl: Callable[[str], Any], tmp_path: Path) -> None:
    place, table = automl_place(case.kind, automl, tmp_path)
    place.write("rows.parquet", case.spoil(table))
    if case.explainer == "renamed":
        place.options["explainer"] = with_other_names(place)
    elif case.explainer is not None:
        place.options["explainer"] = automl(case.explainer).explainer
    before = place.snapshot()
    assert_refused(place, Case(case.name, case.code, case.says), *answer(run(place)), before)


def with_other_names(place: Place) -> Path:
    """The same explainer, had it been made for a model with other columns."""
    import joblib

    from tests.automl_fixtures.quiet import quiet

    with quiet():
        explainer = joblib.load(place.options["explainer"])
    explainer._engineered_features = [f"y{name[1:]}" for name in explainer._engineered_features]
    path = place.root / "renamed.pkl"
    joblib.dump(explainer, path)
    return path


@pytest.mark.automl
def test_automl_refused_in_a_process_of_its_own(automl: Callable[[str], Any], tmp_path: Path) -> None:
    """The Azure stack's own prints, warnings and log lines do not get to the terminal."""
    place, table = automl_place("binary", automl, tmp_path)
    place.write("rows.parquet", cell("age", 1.5, 61, pa.float64())(table))
    assert_refused(place, Case("", 3, ("'age' is 1.5", "row 61 of rows.parquet")), *in_a_process(place), {})


@pytest.mark.automl
def test_automl_null_that_the_model_imputes(automl: Callable[[str], Any], tmp_path: Path) -> None:
    """AutoML refuses the whole batch for it, although its own imputer has the answer: so does this run, and says so."""
    import joblib

    from tests.automl_fixtures.quiet import quiet

    place, table = automl_place("binary", automl, tmp_path)
    place.write("rows.parquet", cell("age", None, 57)(cell("age", None, 3)(table)))
    assert answer(run(place)) == (0, "")
    info = json.loads((place.output / "run.json").read_text())
    assert [decision for decision in info["decisions"] if "'age': 2 nulls" in decision]

    with quiet():
        model, explainer = joblib.load(place.options["model"]), joblib.load(place.options["explainer"])
        featurizer = model.steps[0][1]
        matrix = featurizer.transform(table.to_pandas()).toarray()
        imputer = next(
            transformer.steps[0][1]
            for entry in featurizer.transformer_and_mapper_list
            for columns, transformer, *_ in entry.mapper.features
            if list(columns) == ["age"]
        )
        matrix[[3, 57], featurizer.get_engineered_feature_names().index("age_MeanImputer")] = imputer.statistics_[0]
        probabilities = model.steps[-1][1].predict_proba(matrix)
        importances = np.asarray(explainer.explain(matrix))
    predictions = pq.read_table(place.output / "predictions").to_pandas()
    np.testing.assert_allclose(predictions.probability_1, probabilities[:, 1], rtol=0, atol=1e-12)
    engineered = pq.read_table(place.output / "engineered").select(explainer.engineered_features).to_pandas()
    np.testing.assert_allclose(engineered, importances, rtol=0, atol=1e-9)
