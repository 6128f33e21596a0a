"""Closing a run: all receipts there, rows in = rows out, summaries merged in partition order, then ``_SUCCESS``."""

import logging
from collections import Counter
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa

import batch_explain
from batch_explain.engine.artifacts import Artifacts
from batch_explain.engine.baseline import compared
from batch_explain.engine.delta_output import commit_delta_tables, target_of
from batch_explain.engine.plan import Plan, map_digest, versions
from batch_explain.engine.quarantine import by_count
from batch_explain.engine.task import peak_rss_bytes
from batch_explain.errors import IntegrityError, mask_secrets
from batch_explain.options import DELTA
from batch_explain.report.page import REPORT_PATH, report_html
from batch_explain.results import Run
from batch_explain.storage.atomic import FileRecord, sha256_of, write_bytes, write_json
from batch_explain.storage.attempts import forget_attempts
from batch_explain.storage.delta import LOG_FOLDER
from batch_explain.storage.filesystems import Location
from batch_explain.storage.output import PLAN_FILE, RUN_ID_FILE, remove_temporary
from batch_explain.storage.receipts import Receipt, names_and_sizes, read_receipt, receipt_path
from batch_explain.storage.tables import write_table
from batch_explain.summary import fidelity
from batch_explain.summary.partials import merge_partials
from batch_explain.summary.quantiles import RELATIVE_ERROR, SMALLEST
from batch_explain.summary.sketches import SKETCHES_PATH, sketches_table
from batch_explain.summary.tables import (
    ANALYSIS_PATH,
    DRIFT_PATH,
    SAMPLE_PATH,
    analysis_json,
    summary_json,
    summary_path,
    summary_tables,
)

VERSION = 1

_LOG = logging.getLogger(__name__)


def finalize(plan: Plan, artifacts: Artifacts, timings: dict[str, float]) -> dict[str, Any]:
    """Check that everything was done and write summaries, the report, ``run.json`` and ``_SUCCESS``.

    Parameters
    ----------
    plan : Plan
    artifacts : Artifacts
    timings : dict
        Phase -> seconds, for ``run.json``.

    Returns
    -------
    dict
        ``run.json``.

    Raises
    ------
    IntegrityError
        If a receipt is missing, or rows in are not rows explained.
    """
    output = Location(plan.options.output)
    forget_attempts(output)
    remove_temporary(output)
    receipts = [_receipt(output, plan, partition.index) for partition in plan.partitions]
    _count_rows(plan, receipts)
    files = [record for receipt in receipts for record in receipt.files]
    files += [receipt.partial for receipt in receipts]
    files += [_record(output, receipt_path(receipt.index)) for receipt in receipts]
    files += [_record(output, path) for path in (PLAN_FILE, RUN_ID_FILE)]
    if artifacts.explainer.feature_map is not None:
        files.append(_write_feature_map(output, artifacts))
    records, tables, sample = _write_summaries(plan, artifacts, output, receipts)
    files += records
    content = _run_json(plan, artifacts, receipts, timings, files)
    if plan.options.output_format == DELTA:
        committed = commit_delta_tables(plan, receipts)
        content["delta"] = {"location": str(target_of(plan)), "versions": committed}
        logs = [path for folder in committed for path in names_and_sizes(output, f"{folder}/{LOG_FOLDER}")]
        content["files"] += [asdict(_record(output, path)) for path in sorted(logs)]
    del receipts, files, records  # of 20,000 partitions they take 100 MB, and so does run.json
    drift = _compare(plan, output, content)
    _write_report(plan, output, content, tables, sample, drift)
    record = write_json(output, "run.json", content)
    write_json(output, "_SUCCESS", {"run.json": record.sha256})
    return content


def _compare(plan: Plan, output: Location, content: dict[str, Any]) -> dict[str, Any] | None:
    """Compare the run, whose summaries are there, with its baseline; ``content`` gets the outcome in short."""
    if plan.options.baseline is None:
        _forget(output, DRIFT_PATH)
        return None
    comparison = compared(Run(output, content), plan.options.baseline, plan.options.max_drift)
    found = comparison.to_json()
    record = write_json(output, DRIFT_PATH, found)
    content["files"].append(asdict(record))
    content["drift"] = comparison.headline()
    return found


def _receipt(output: Location, plan: Plan, index: int) -> Receipt:
    receipt = read_receipt(output, index)
    if receipt is None or receipt.run_id != plan.run_id:
        raise IntegrityError(f"Partition {index} has no receipt: it was not finished. Go on with --resume.")
    return receipt


def _count_rows(plan: Plan, receipts: list[Receipt]) -> None:
    for partition, receipt in zip(plan.partitions, receipts, strict=True):
        done = receipt.rows_explained + receipt.rows_quarantined + receipt.rows_left_out
        if not receipt.rows_in == done == partition.rows:
            raise IntegrityError(
                f"{partition.name}: the task read {receipt.rows_in}, explained {receipt.rows_explained}, quarantined "
                f"{receipt.rows_quarantined} and left out {receipt.rows_left_out} of {partition.rows} rows. The "
                "results are not complete: start the run again with --overwrite."
            )


def _record(output: Location, path: str) -> FileRecord:
    place = output.join(path)
    return FileRecord(path, int(place.fs.size(place.path)), sha256_of(place))


def _write_feature_map(output: Location, artifacts: Artifacts) -> FileRecord:
    """Non-zero weights as (raw feature, engineered feature, weight)."""
    explainer = artifacts.explainer
    assert explainer.feature_map is not None
    entries = explainer.feature_map.tocoo()
    order = np.lexsort((entries.row, entries.col))
    raw, engineered = np.array(explainer.raw_features), np.array(explainer.engineered_features)
    table = pa.table({
        "raw_feature": pa.array(raw[entries.row[order]].tolist(), pa.string()),
        "engineered_feature": pa.array(engineered[entries.col[order]].tolist(), pa.string()),
        "weight": entries.data[order],
    })  # fmt: skip
    return write_table(output, "feature_map.parquet", table)


def _write_summaries(
    plan: Plan, artifacts: Artifacts, output: Location, receipts: list[Receipt]
) -> tuple[list[FileRecord], dict[str, pa.Table], pa.Table | None]:
    """Write all summaries and the sample; give the tables back too."""
    explainer = artifacts.explainer
    names = {"engineered": explainer.engineered_features, "raw": explainer.raw_features or ()}
    layout = plan.layout(len(names["raw"]), explainer.n_outputs)
    statistics, sketched, sample = merge_partials(output, receipts, layout, plan.sketches, plan.sampling)
    tables = summary_tables(
        layout,
        statistics,
        rows=sum(receipt.lines for receipt in receipts),
        features={level: names[level] for level in plan.levels},
        used=explainer.used,
        outputs=artifacts.labels or [None],
    )
    records = []
    for name, table in tables.items():
        records.append(write_table(output, summary_path(name, "parquet"), table))
        records.append(write_json(output, summary_path(name, "json"), summary_json(name, table)))
    records.append(write_json(output, ANALYSIS_PATH, analysis_json(tables, _expected_values(artifacts))))
    computed = {**names, "engineered": [names["engineered"][at] for at in explainer.used]}
    sketches = sketches_table(
        layout, statistics, plan.sketches, sketched, features=computed, outputs=artifacts.labels or [None]
    )
    records.append(write_table(output, SKETCHES_PATH, sketches, compression="zstd"))
    if sample is not None:
        records.append(write_table(output, SAMPLE_PATH, sample))
    return records, tables, sample


def _write_report(
    plan: Plan,
    output: Location,
    content: dict[str, Any],
    tables: dict[str, pa.Table],
    sample: pa.Table | None,
    drift: dict[str, Any] | None,
) -> None:
    """Write the report, and add its record to ``run.json``'s content.

    What was computed is worth more than its picture: where the page cannot be made, the run ends without it, and its
    warnings say so. A storage that cannot be written stops the run as it does anywhere else.
    """
    page = None
    if plan.options.report:
        try:
            page = report_html(content, tables, sample, drift=drift)
        except Exception as error:
            wrong = (
                f"{REPORT_PATH} could not be made ({type(error).__name__}: {mask_secrets(str(error))}); all else is "
                "complete. Once that is mended, batch-explain report makes it from the finished run"
            )
            content["warnings"].append(wrong)
            _LOG.warning(wrong)
    if page is not None:
        record = write_bytes(output, REPORT_PATH, page)
        content["files"].append(asdict(record))
        return
    _forget(output, REPORT_PATH)


def _forget(output: Location, path: str) -> None:
    """Remove what an attempt to close this run left that ended before ``run.json``, and that this one does not make."""
    place = output.join(path)
    if place.exists():
        place.fs.rm_file(place.path)


def _expected_values(artifacts: Artifacts) -> list[float | None]:
    return [None if np.isnan(value) else value for value in artifacts.explainer.expected_values.tolist()]


def _run_json(
    plan: Plan,
    artifacts: Artifacts,
    receipts: list[Receipt],
    timings: dict[str, float],
    files: list[FileRecord],
) -> dict[str, Any]:
    explainer, teacher = artifacts.explainer, artifacts.teacher
    faith = None
    for receipt in receipts:
        faith = fidelity.merge(faith, fidelity.from_json(receipt.statistics["fidelity"]))
    residuals = [r.statistics["additivity_residual"] for r in receipts]
    residuals = [residual for residual in residuals if residual is not None]
    used, written = set(explainer.used.tolist()), set(plan.written.tolist())
    explaining = timings.get("explain", 0.0)
    taken = sum(receipt.rows_in - receipt.rows_left_out for receipt in receipts)
    peaks = [receipt.worker["peak_rss_bytes"] for receipt in receipts] + [peak_rss_bytes()]
    return {
        "format_version": VERSION,
        "batch_explain": batch_explain.__version__,
        "task": artifacts.task,
        "classes": None if artifacts.classes is None else [_plain(label) for label in artifacts.classes],
        "outputs": list(artifacts.labels) if artifacts.labels else None,
        "expected_values": _expected_values(artifacts),
        "rows": {
            "input": sum(file.rows for file in plan.files),
            "planned": plan.rows,
            "explained": sum(receipt.rows_explained for receipt in receipts),
            "quarantined": sum(receipt.rows_quarantined for receipt in receipts),
            **_left_out(plan, receipts),
            **_of_series(plan, receipts),
        },
        "quarantine": _quarantine(plan, receipts),
        "tables": {level: [spec.folder for spec in specs] for level, specs in plan.tables.items()},
        "ids": list(plan.ids) or ["source_file", "source_row"],
        "summaries": _summaries(plan),
        "reasons": None if plan.reasons is None else plan.reasons.describe(),
        "features": {
            "engineered": list(explainer.engineered_features),
            "raw": None if explainer.feature_map is None else list(explainer.raw_features or ()),
            "identically_zero": [name for i, name in enumerate(explainer.engineered_features) if i not in used],
            "not_written": [name for i, name in enumerate(explainer.engineered_features) if i not in written],
            "unmapped": _unmapped(artifacts),
            "feature_map_sha256": map_digest(explainer.feature_map),
        },
        "fidelity": None if faith is None else faith.describe(),
        "drift": None,
        "additivity": {
            "check": plan.options.check,
            "rows_checked": sum(receipt.statistics["additivity_rows"] for receipt in receipts),
            "largest_residual": max(residuals, default=None),
            "allowed": explainer.margin_tolerance if explainer.additive else None,
        },
        "decisions": [
            *plan.decisions,
            *(
                f"column '{column}': {nulls} nulls in an integer column were filled by the model's own imputer"
                for column, nulls in sorted(_totals(receipts, "imputed").items())
            ),
        ],
        "warnings": [
            f"column '{column}': {count} values have blanks around a category that the model knows; it takes them for "
            "unknown ones"
            for column, count in sorted(_totals(receipts, "padded").items())
        ],
        "artifacts": {
            "model": None if teacher is None else {"kind": teacher.kind, "sha256": plan.artifacts["model"]},
            "explainer": {
                "kind": explainer.kind,
                "description": explainer.description,
                "sha256": plan.artifacts["explainer"],
            },
        },
        "treeshap": _treeshap(receipts),
        "options": plan.to_json()["options"],
        "input": {
            "files": len(plan.files),
            "bytes": sum(file.bytes for file in plan.files),
            "location": mask_secrets(plan.options.input),
        },
        "partitions": len(plan.partitions),
        "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "timings_s": {name: round(seconds, 3) for name, seconds in timings.items()},
        "rows_per_second": round(taken / explaining, 1) if explaining else None,
        "peak_rss_bytes": max((peak for peak in peaks if peak is not None), default=None),
        "worker_processes": len({(r.worker["host"], r.worker["pid"]) for r in receipts}),
        "versions": versions(),
        "files": [asdict(file) for file in files],
    }  # fmt: skip


def _left_out(plan: Plan, receipts: list[Receipt]) -> dict[str, int]:
    """With a filter: rows for which it is not true, those of row groups that were not read among them."""
    if plan.options.filter is None:
        return {}
    skipped = sum(file.rows_skipped for file in plan.files)
    return {"left_out": skipped + sum(receipt.rows_left_out for receipt in receipts)}


def _of_series(plan: Plan, receipts: list[Receipt]) -> dict[str, int]:
    """Of forecasting: lines, one for each row and origin, and rows of the input with a known target."""
    if plan.series is None:
        return {}
    return {"lines": sum(receipt.lines for receipt in receipts), "context": sum(plan.series.context.values())}


def _summaries(plan: Plan) -> dict[str, Any]:
    """What there is beside the summaries of all rows."""
    return {
        "cohorts": [{"cohort": cohort.name, "groups": list(cohort.labels)} for cohort in plan.cohorts],
        "sample_rows": plan.sample_rows,
        "quantiles": {"relative_error": RELATIVE_ERROR, "counted_as_zero_below": SMALLEST},
    }


def _totals(receipts: list[Receipt], statistic: str) -> dict[str, int]:
    """Counts by column, over all partitions."""
    found: Counter[str] = Counter()
    for receipt in receipts:
        found.update(receipt.statistics[statistic])
    return dict(found)


def _quarantine(plan: Plan, receipts: list[Receipt]) -> dict[str, Any]:
    """Why rows and files were left out, and of which files how many rows."""
    reasons: Counter[str] = Counter()
    unreadable = {file.path: file.problem for file in plan.files if file.problem is not None}
    rows: Counter[str] = Counter()
    for partition, receipt in zip(plan.partitions, receipts, strict=True):
        if receipt.statistics["unreadable"] is None:
            reasons.update(receipt.statistics["reasons"])
        else:
            unreadable.setdefault(partition.paths[0], receipt.statistics["unreadable"])
        rows.update(receipt.statistics["bad_rows"])
    return {
        "reasons": by_count(reasons),
        "rows_by_file": dict(sorted(rows.items())),
        "unreadable_files": [{"path": path, "reason": reason} for path, reason in sorted(unreadable.items())],
    }


def _treeshap(receipts: list[Receipt]) -> dict[str, Any] | None:
    """What computed TreeSHAP on the workers; where they differ, each of their answers."""
    found = [receipt.worker["treeshap"] for receipt in receipts if receipt.worker["treeshap"]]
    if not found:
        return None
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for each in found for key in each):
        values = list(dict.fromkeys(each[key] for each in found if key in each))
        merged[key] = values[0] if len(values) == 1 else values
    return merged


def _unmapped(artifacts: Artifacts) -> list[str]:
    """Used engineered features that map to no raw one: their importance is lost in the raw table."""
    explainer = artifacts.explainer
    if explainer.feature_map is None:
        return []
    totals = np.asarray(explainer.feature_map.sum(axis=0)).ravel()
    return [explainer.engineered_features[i] for i in explainer.used if totals[i] == 0]


def _plain(label: Any) -> Any:
    return label if isinstance(label, bool | int | float | str) or label is None else str(label)
