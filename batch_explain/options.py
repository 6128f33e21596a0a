"""The options of a run: one frozen object, everything validated once, here."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from batch_explain.errors import OptionError
from batch_explain.filters import Filter

TABLES = ("predictions", "engineered", "raw")  # unless --outputs says otherwise
REASONS = "reasons"
ALL_TABLES = (*TABLES, "features", REASONS)
PARQUET, DELTA = "parquet", "delta"
SCHEDULERS = ("processes", "threads", "sync")
_PARTITIONS = 20  # before they become larger
_PROTOCOLS = ("tcp", "tls", "ws", "wss", "inproc")  # of Dask schedulers

DEFAULT_PARTITION_ROWS, MOST_PARTITION_ROWS = 100_000, 500_000
DEFAULT_BATCH_ROWS = 25_600
DEFAULT_SAMPLE_ROWS = 2_000
DEFAULT_TABLE_MEMORY = 400_000_000  # bytes
DEFAULT_TOP_K = 5

_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}} | {
    f"{p}IB": 1024 ** (i + 1) for i, p in enumerate("KMGT")
}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600}
_SMALLEST_SIZE = 1_000_000  # bytes
_OF_REASONS = (
    "top_k", "reasons", "reasons_level", "reasons_for", "reason_codes", "missing_code", "exclude_features",
    "group_features",
)  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """What a run reads, writes and computes.

    Parameters
    ----------
    input : str
        Path or URL of a file (parquet, CSV, JSON lines, Arrow IPC), a folder of them, a glob, or a Delta table
        (``delta://FOLDER``).
    output : str
        Path or URL of a folder that is empty or does not exist.
    explainer : str or None
        ``scoring_explainer.pkl``, a bundle's folder, or a LightGBM model text file. None: the model is explained by its
        own trees, where it is a sum of trees.
    model : str, optional
        Pickle of the fitted pipeline, a skops file, or a bundle that holds the model. Without it the input holds the
        engineered features by name.
    direct : bool
        That the model is explained by its own trees was asked for; without an explainer it is in any case.
    feature_map : str, optional
        Parquet of (raw_feature, engineered_feature, weight), for an explainer that holds no feature map.
    background : str, optional
        Path or URL of a parquet file with at most 500 rows as the input has them: importances are interventional SHAP
        values against these rows. None: path-dependent SHAP values.
    id_columns : tuple of str
        Columns copied to every table; empty: ``source_file`` and ``source_row``.
    history : str, optional
        Of a forecasting model with lags or windows: path or URL of rows whose target is known, before those to explain.
    filter : str or None
        Conditions that rows must fulfil to be explained: :class:`batch_explain.filters.Filter`, as text.
    target_column : str, optional
        The column of known targets in ``history``. Rows of the input in which it is not null are history too.
    columns_map : tuple of (str, str)
        (name in the model, name in the file) where the two differ.
    outputs : tuple of str or None
        Tables to write; None: all of predictions, engineered, raw that can be made. ``features``: the engineered
        features' own values, from which a later run can explain without the model. ``reasons``: each row's most
        important features.
    top_k : int
        Most reasons of a row and output.
    reasons : str
        ``by-magnitude``, or only the ``positive`` or the ``negative`` importances. None of them is ever 0.
    reasons_level : str or None
        ``raw`` or ``engineered`` features; None: raw ones where there is a feature map.
    reasons_for : str
        ``all`` outputs, or the ``predicted`` class alone.
    reason_codes : str, optional
        CSV of (feature, direction, code, text); the direction is ``positive``, ``negative``, or empty for either.
    missing_code : str
        A feature without a code is an ``error`` before the run begins, or gets the code ``other``.
    exclude_features : tuple of str
        Features, or groups of them, that are never reasons.
    group_features : str, optional
        CSV of (feature, group): the importances of a group's features add up to one reason.
    scheduler : str
        ``processes``, ``threads``, ``sync``, or a Dask scheduler: its address (``tcp://``, ``tls://``), or the
        ``.json`` file that it wrote. :func:`batch_explain.explain_dataset` takes a client or cluster of Dask too.
    workers : int or None
        Number of workers; None: one a core. A running cluster brings its own.
    partition_rows : int or None
        Largest number of rows of a partition. None: 100,000; of more than 2 million a twentieth, at most 500,000; fewer
        where their parts' footers would be large, because rows are very wide or batches very small, never below 1,000.
    batch_rows : int
        Largest number of rows of one step inside a task.
    table_memory : int
        Bound on TreeSHAP's tables, in bytes; local worker processes share them.
    memory_limit : int or None
        Bound on the memory of each worker process, in bytes; None: no bound beside those above.
    limit : int or None
        Explain only the first rows (a trial).
    check : str
        ``sample``: additivity on 256 fixed rows a batch; ``all``: on every row.
    dtype : str
        ``float64`` or ``float32``: how importances are stored (they are always computed in float64).
    compression : str
        ``snappy``, ``zstd`` or ``none``.
    output_format : str
        ``parquet``, or ``delta``: the tables are Delta tables too, each with one commit of this run.
    append_to : str, optional
        Folder of Delta tables that the run's rows are appended to; None: the output's own tables become such.
    max_bad_rows : str
        How many rows may be put into quarantine, because they cannot be explained: a number, or a share such as
        ``0.1%`` of the planned rows. ``0``: the first one ends the run.
    max_bad_files : int
        How many files may be left out because they cannot be read.
    cohort : tuple of str
        Columns by whose values rows are summarised apart, each as ``COLUMN``, ``COLUMN:18,30,50`` (cut at these edges)
        or ``COLUMN@4`` (cut at quartiles).
    sample_rows : int
        Rows that are kept for plots, with their values and importances; 0: none.
    no_row_values : bool
        Keep the rows' own values out of quarantine, sample and reasons. Labels of cohorts are not rows' values.
    baseline : str or None
        A finished run, or a saved explanation of interpret-community, that the run is compared with.
    max_drift : float or None
        How far the ranking of importances may be from the baseline's: 1 - nDCG, from 0 to 1. Beyond it the run ends,
        complete, with an error.
    report : bool
        Write ``report.html``: the run as one page.
    task_timeout : float or None
        Seconds that one task may take; None: no limit.
    trust : tuple of str
        Names that a pickle may use beside those that genuine models and explainers need: ``package.module.Class``.
    sha256 : tuple of (str, str)
        (``model`` or ``explainer``, what the SHA-256 of its file must be).
    overwrite : bool
        Remove the run that is in ``output`` first.
    resume : bool
        Continue the run that is in ``output``; begin anew where there is none.

    Raises
    ------
    OptionError
        If a value is not one of these, or two contradict each other.
    """

    input: str
    output: str
    explainer: str | None = None
    model: str | None = None
    direct: bool = False
    feature_map: str | None = None
    background: str | None = None
    id_columns: tuple[str, ...] = ()
    history: str | None = None
    target_column: str | None = None
    columns_map: tuple[tuple[str, str], ...] = ()
    outputs: tuple[str, ...] | None = None
    top_k: int = DEFAULT_TOP_K
    reasons: str = "by-magnitude"
    reasons_level: str | None = None
    reasons_for: str = "all"
    reason_codes: str | None = None
    missing_code: str = "error"
    exclude_features: tuple[str, ...] = ()
    group_features: str | None = None
    scheduler: str = "processes"
    workers: int | None = None
    partition_rows: int | None = None
    batch_rows: int = DEFAULT_BATCH_ROWS
    table_memory: int = DEFAULT_TABLE_MEMORY
    memory_limit: int | None = None
    limit: int | None = None
    filter: str | None = None
    check: str = "sample"
    dtype: str = "float64"
    compression: str = "snappy"
    output_format: str = PARQUET
    append_to: str | None = None
    max_bad_rows: str = "0"
    max_bad_files: int = 0
    cohort: tuple[str, ...] = ()
    sample_rows: int = DEFAULT_SAMPLE_ROWS
    no_row_values: bool = False
    baseline: str | None = None
    max_drift: float | None = None
    report: bool = True
    task_timeout: float | None = None
    trust: tuple[str, ...] = ()
    sha256: tuple[tuple[str, str], ...] = ()
    overwrite: bool = False
    resume: bool = False

    @classmethod
    def create(cls, **values: Any) -> "RunOptions":
        """Build options from what people write: paths, comma lists, mappings, numbers as text."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise OptionError(f"Unknown option {_listed(unknown)}. Known options are {', '.join(sorted(known))}.")
        for name in ("input", "output"):
            if values.get(name) is None:
                raise OptionError(f"The option '{name}' is missing: a run needs input, output, and explainer or model.")
        if values.get("explainer") is None and values.get("model") is None:
            raise OptionError(
                "The option 'explainer' is missing, and so is 'model', which might be explained directly: a run needs "
                "one of them."
            )
        if values.get("direct") and (values.get("explainer") is not None or values.get("model") is None):
            raise OptionError(
                "--direct explains the --model by its own trees, without an --explainer. Pass the model, and leave the "
                "explainer out."
            )
        paths = (
            "input", "output", "explainer", "model", "feature_map", "background", "history", "reason_codes",
            "group_features", "baseline", "append_to",
        )  # fmt: skip
        for name in paths:
            if values.get(name) is not None:
                values[name] = _path(name, values[name])
        values["id_columns"] = _names("id_columns", values.get("id_columns") or ())
        values["columns_map"] = _pairs(values.get("columns_map") or ())
        values["trust"] = cls.trusted(values.get("trust") or ())
        values["sha256"] = _fingerprints(values.get("sha256") or ())
        if values.get("outputs") is not None:
            values["outputs"] = _names("outputs", values["outputs"])
        values = _reasons(values)
        for name in ("workers", "partition_rows", "batch_rows", "limit", "top_k"):
            if values.get(name) is not None:
                values[name] = _whole(name, values[name])
            elif name in ("batch_rows", "top_k"):
                values.pop(name, None)
        if values.get("filter") is not None:
            values["filter"] = str(Filter.parse(str(values["filter"])))
        values["cohort"] = as_texts("cohort", values.get("cohort") or ())
        if values.get("sample_rows") is None:
            values.pop("sample_rows", None)
        else:
            values["sample_rows"] = _whole("sample_rows", values["sample_rows"], at_least=0)
        if values.get("max_bad_rows") is None:
            values.pop("max_bad_rows", None)
        else:
            values["max_bad_rows"] = _count_or_share("max_bad_rows", values["max_bad_rows"])
        if values.get("max_bad_files") is None:
            values.pop("max_bad_files", None)
        else:
            values["max_bad_files"] = _whole("max_bad_files", values["max_bad_files"], at_least=0)
        if values.get("max_drift") is not None:
            values["max_drift"] = drift_limit(values["max_drift"])
        if values.get("task_timeout") is not None:
            values["task_timeout"] = _seconds("task_timeout", values["task_timeout"])
        for name in ("table_memory", "memory_limit"):
            if values.get(name) is None:
                values.pop(name, None)
            else:
                values[name] = _size(name, values[name])
        return cls(**values)

    def __post_init__(self) -> None:
        _one_of("check", self.check, ("sample", "all"))
        _one_of("dtype", self.dtype, ("float64", "float32"))
        _one_of("compression", self.compression, ("snappy", "zstd", "none"))
        _one_of("output-format", self.output_format, (PARQUET, DELTA))
        if self.append_to is not None and self.output_format != DELTA:
            raise OptionError("--append-to is for Delta tables. Pass --output-format delta too, or leave it out.")
        _one_of("reasons", self.reasons, ("by-magnitude", "positive", "negative"))
        _one_of("reasons-level", self.reasons_level or "raw", ("raw", "engineered"))
        _one_of("reasons-for", self.reasons_for, ("all", "predicted"))
        _one_of("missing-code", self.missing_code, ("error", "other"))
        for name in ("overwrite", "resume", "no_row_values", "report"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}. Use true or false.")
        if self.overwrite and self.resume:
            raise OptionError(
                "--overwrite removes the run that is in the output, and --resume continues it. Pass one of the two."
            )
        if not (self.scheduler in SCHEDULERS or _is_cluster(str(self.scheduler))):
            raise OptionError(
                f"--scheduler is '{self.scheduler}'. Use processes, threads, sync, the address of a running Dask "
                "scheduler such as tcp://host:8786, or its scheduler file, which ends in .json."
            )
        if self.max_drift is not None and self.baseline is None:
            raise OptionError("--max-drift needs something to compare with. Pass --baseline too.")
        if self.outputs is not None:
            if not self.outputs:
                raise OptionError("--outputs names no table. Name at least one of " + ", ".join(ALL_TABLES) + ".")
            for table in self.outputs:
                _one_of("outputs", table, ALL_TABLES)
        if repeated := _repeated(self.cohort):
            raise OptionError(f"--cohort is {_listed(repeated)} more than once. Name each column once.")
        if repeated := _repeated(self.id_columns):
            raise OptionError(f"--id-columns names {_listed(repeated)} more than once. Name each column once.")
        for side, place in ((0, "model column"), (1, "file column")):
            if repeated := _repeated([pair[side] for pair in self.columns_map]):
                raise OptionError(
                    f"--columns-map gives the {place} {_listed(repeated)} more than once. Map each column once."
                )

    def rows_of_a_partition(self, rows: int, most: int = MOST_PARTITION_ROWS) -> int:
        """The largest number of rows of a partition, of so many; by default at most ``most``.

        The default is what benchmarks/scaling.py recommends: larger partitions are better, but for small inputs, which
        they would not share out among the workers.
        """
        if self.partition_rows is not None:
            return self.partition_rows
        return min(MOST_PARTITION_ROWS, most, max(DEFAULT_PARTITION_ROWS, rows // _PARTITIONS))

    def bad_rows_allowed(self, rows: int) -> int:
        """How many of so many planned rows may be bad."""
        if self.max_bad_rows.endswith("%"):
            return int(rows * float(self.max_bad_rows[:-1]) / 100)
        return int(self.max_bad_rows)

    @staticmethod
    def trusted(value: Any) -> tuple[str, ...]:
        """Names that pickles may use, sorted.

        Raises
        ------
        OptionError
            If one is no exact name of a class or function in a module.
        """
        names = tuple(sorted(set(_names("trust", value))))
        for name in names:
            if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
                raise OptionError(
                    f"--trust is '{name}'. Write one exact name, with its module, such as my_module.MyTransformer: "
                    "there are no patterns."
                )
        return names

    @property
    def where(self) -> Filter | None:
        """The filter."""
        return None if self.filter is None else Filter.parse(self.filter)

    @property
    def fingerprints(self) -> dict[str, str]:
        """``model``, ``explainer`` -> what the SHA-256 of its file must be, in hexadecimal digits."""
        return dict(self.sha256)

    @property
    def has_processes(self) -> bool:
        """Whether several processes of one machine may run tasks."""
        return self.scheduler not in ("threads", "sync") and self.workers != 1

    @property
    def pyarrow_compression(self) -> str | None:
        """The codec's name as pyarrow spells it."""
        return None if self.compression == "none" else self.compression


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def _is_cluster(scheduler: str) -> bool:
    return scheduler.endswith(".json") or (scheduler.partition("://")[0] in _PROTOCOLS and "://" in scheduler)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"--{name} is '{value}'. Use one of {', '.join(allowed)}.")


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise OptionError(
            f"The option '{name}' is an object of type {type(value).__name__}. A run needs a path or a URL, because "
            "worker processes load the artifact themselves: save the object and pass the file."
        )
    text = os.fspath(value)
    if not text:
        raise OptionError(f"The option '{name}' is empty. Pass a path or a URL.")
    return text


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, Iterable):
        raise OptionError(f"--{name.replace('_', '-')} is {value!r}. Write names, separated by commas.")
    parts = value.split(",") if isinstance(value, str) else list(value)
    names = tuple(str(part).strip() for part in parts)
    if any(not part for part in names):
        raise OptionError(f"--{name.replace('_', '-')} has an empty name in it. Separate names by single commas.")
    return names


def as_texts(name: str, value: Any) -> tuple[str, ...]:
    """One text, or several; not cut at commas. Raises OptionError."""
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(text, str) and text for text in texts):
        raise OptionError(f"--{name} is {value!r}. Write a text, or several in a list.")
    return texts


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(value, Mapping):
        value = value.items()
    pairs = []
    for part in [value] if isinstance(value, str) or not isinstance(value, Iterable) else value:
        names = part.split("=", 1) if isinstance(part, str) else part
        if not (isinstance(names, tuple | list) and len(names) == 2 and all(str(name) for name in names)):
            raise OptionError(
                f"--columns-map is {part!r}. Write MODEL=FILE: the column's name in the model, then in the file."
            )
        pairs.append((str(names[0]), str(names[1])))
    return tuple(pairs)


def _reasons(values: dict[str, Any]) -> dict[str, Any]:
    """Check that options of reasons are given together with what they need; those that are not keep their default."""
    given = [name for name in _OF_REASONS if values.get(name) not in (None, (), [])]
    if given and REASONS not in (values.get("outputs") or ()):
        raise OptionError(
            f"--{given[0].replace('_', '-')} is about reasons, which are not asked for. Name 'reasons' in --outputs, "
            "or leave the option out."
        )
    if "missing_code" in given and "reason_codes" not in given:
        raise OptionError("--missing-code says what a feature without a code gets. Pass the --reason-codes too.")
    values = {name: value for name, value in values.items() if name not in _OF_REASONS or name in given}
    if "exclude_features" in given:
        values["exclude_features"] = tuple(dict.fromkeys(_names("exclude_features", values["exclude_features"])))
    return values


def _fingerprints(value: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(value, Mapping):
        value = value.items()
    pairs = []
    for part in [value] if isinstance(value, str) or not isinstance(value, Iterable) else value:
        name, digest = part.partition("=")[::2] if isinstance(part, str) else part
        if name not in ("model", "explainer") or not re.fullmatch(r"[0-9a-fA-F]{64}", str(digest)):
            raise OptionError(
                f"--sha256 is {part!r}. Write model=HEX or explainer=HEX, with the 64 digits that sha256sum prints for "
                "the file."
            )
        pairs.append((name, str(digest).lower()))
    if repeated := _repeated(name for name, _ in pairs):
        raise OptionError(f"--sha256 names {_listed(repeated)} twice. Write one for each file.")
    return tuple(pairs)


def _size(name: str, value: Any) -> int:
    """Bytes of a size such as ``400MB``, ``2 GiB`` or ``1000000``."""
    option = "--" + name.replace("_", "-")
    found = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not found or found[2].upper() not in _UNITS:
        raise OptionError(f"{option} is '{value}'. Use a size such as 400MB, 2GB or 1GiB.")
    size = int(float(found[1].replace("_", "")) * _UNITS[found[2].upper()])
    if size < _SMALLEST_SIZE:
        raise OptionError(f"{option} is '{value}'. Use at least 1MB.")
    return size


def _seconds(name: str, value: Any) -> float:
    """Seconds of a time such as ``90``, ``90s``, ``10m`` or ``2h``."""
    option = "--" + name.replace("_", "-")
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(value))
    seconds = float(found[1]) * _TIMES[found[2]] if found else 0.0
    if not seconds:
        raise OptionError(f"{option} is '{value}'. Use a time such as 90s, 10m or 2h.")
    return seconds


def drift_limit(value: Any) -> float:
    """A number from 0 to 1. Raises OptionError."""
    try:
        limit = float(value)
    except (TypeError, ValueError):
        limit = -1.0
    if not 0 <= limit <= 1:
        raise OptionError(f"--max-drift is '{value}'. Use a number from 0 to 1, such as 0.1: it is 1 - nDCG.")
    return limit


def _count_or_share(name: str, value: Any) -> str:
    """A whole number, or a share from 0% to 100%."""
    option, text = "--" + name.replace("_", "-"), str(value).replace("_", "").strip()
    if text.isdecimal():
        return str(int(text))
    if re.fullmatch(r"\d+(\.\d+)?%", text) and float(text[:-1]) <= 100:
        return text
    raise OptionError(f"{option} is '{value}'. Use a number of rows such as 100, or a share such as 0.1%.")


def _whole(name: str, value: Any, at_least: int = 1) -> int:
    option = "--" + name.replace("_", "-")
    try:
        number = int(str(value).replace("_", ""))
    except ValueError:
        raise OptionError(f"{option} is '{value}'. Use a whole number of at least {at_least}.") from None
    if number < at_least:
        raise OptionError(f"{option} is {number}. Use a whole number of at least {at_least}.")
    return number
