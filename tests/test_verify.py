"""`verify` finds whatever is not what the run wrote, names it, and what it advises mends it."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import batch_explain as bx
from batch_explain.cli import cli
from batch_explain.engine.verify import Verification
from batch_explain.errors import OptionError
from tests.comparing import digests
from tests.conftest import Engineered, Small, once
from tests.test_restart import stop_after

PART = "engineered/part-00002.parquet"

pytestmark = once


class Job:
    """A run on engineered rows, in eight partitions of two batches each."""

    def __init__(self, engineered: Engineered, folder: Path) -> None:
        self.folder = folder
        for number in range(2):
            frame = engineered.frame[number * 800 : (number + 1) * 800]
            (folder / "rows").mkdir(exist_ok=True)
            frame.to_parquet(folder / f"rows/{number}.parquet", index=False)
        self.explainer = folder / "surrogate.txt"
        shutil.copy(engineered.explainer, self.explainer)
        self.output = folder / "out"

    def run(self, **options: Any) -> bx.Run:
        return bx.explain_dataset(
            **{
                "input": self.folder / "rows",
                "explainer": self.explainer,
                "output": self.output,
                "partition_rows": 200,
                "batch_rows": 120,
                "scheduler": "sync",
                "report": False,  # 5 MB that every check reads; test_report.py verifies one
                **options,
            }
        )

    def stop_after(self, partitions: int) -> None:
        """Begin the run, and stop it when so many partitions are done."""
        with pytest.raises(KeyboardInterrupt):
            self.run(observers=[stop_after(partitions)])

    def verify(self, **options: Any) -> Verification:
        return bx.verify_run(self.output, **options)

    def advised(self, file: str, **options: Any) -> None:
        """Do what verify advises for a damaged file of a finished run."""
        (self.output / "_SUCCESS").unlink()
        (self.output / file).unlink(missing_ok=True)
        self.run(resume=True, **options)


@pytest.fixture
def job(engineered: Engineered, tmp_path: Path) -> Job:
    return Job(engineered, tmp_path)


@pytest.fixture
def done(job: Job) -> Job:
    job.run()
    return job


def files_of(output: Path) -> list[Path]:
    return sorted(path for path in output.rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a part, keeping its row groups, columns and metadata."""
    parquet = pq.ParquetFile(path)
    groups = [parquet.read_row_group(group) for group in range(parquet.num_row_groups)]
    changed = change(pa.concat_tables(groups))
    with pq.ParquetWriter(path, parquet.schema_arrow) as writer:
        before = 0
        for group in groups:
            writer.write_table(changed.slice(before, group.num_rows))
            before += group.num_rows


def write_as_run_does(path: Path, content: Any) -> None:
    path.write_bytes(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def forge(output: Path) -> None:
    """Make every record agree with the files as they are now: receipts, run.json, _SUCCESS."""

    def record(path: str) -> dict[str, Any]:
        content = (output / path).read_bytes()
        return {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    for place in sorted((output / "_run/receipts").iterdir()):
        receipt = json.loads(place.read_bytes())
        receipt["files"] = [record(file["path"]) for file in receipt["files"]]
        receipt["partial"] = record(receipt["partial"]["path"])
        write_as_run_does(place, receipt)
    info = json.loads((output / "run.json").read_bytes())
    info["files"] = [record(file["path"]) for file in info["files"]]
    write_as_run_does(output / "run.json", info)
    write_as_run_does(output / "_SUCCESS", {"run.json": record("run.json")["sha256"]})


def add_to(feature: str, row: int, amount: float) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[feature].to_numpy().copy()
        values[row] += amount
        at = table.column_names.index(feature)
        return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))

    return change


def problems(found: Verification) -> list[str]:
    assert found.exit_code == (6 if found.problems else 0 if found.finished else 5)
    return [str(problem) for problem in found.problems]


def test_a_finished_run_is_all_right(done: Job) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files_of(done.output)}
    found = done.verify()
    assert (problems(found), found.finished, found.ok) == ([], True, True)
    assert (found.partitions, found.planned_partitions, found.rows) == (8, 8, 1_600)
    assert found.files == len(before) and found.bytes == sum(len(content) for _, content in before.values())
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files_of(done.output)} == before


@pytest.mark.parametrize("flips", [20, pytest.param(1_000, marks=pytest.mark.soak)])
def test_every_flipped_bit_is_found(flips: int, done: Job) -> None:
    chance = random.Random(flips)
    places = files_of(done.output)
    chosen = places[:] if flips > len(places) else []  # each file at least once, where there are enough
    chosen += chance.choices(places, k=flips - len(chosen))
    for path in chosen:
        bit = chance.randrange(path.stat().st_size * 8)
        flip(path, bit)
        found = problems(done.verify())
        assert any(str(path.relative_to(done.output)) in problem for problem in found), (path, bit, found)
        assert len(found) == 1, (path, bit, found)
        flip(path, bit)
    assert problems(done.verify()) == []


def test_one_flip_in_each_kind_of_file(done: Job) -> None:
    kinds = {path.parent: path for path in files_of(done.output)} | {p: p for p in done.output.iterdir() if p.is_file()}
    for path in kinds.values():
        for bit in (0, path.stat().st_size * 4, path.stat().st_size * 8 - 1):
            flip(path, bit)
            assert str(path.relative_to(done.output)) in " ".join(problems(done.verify())), (path, bit)
            flip(path, bit)


@pytest.mark.parametrize(
    "file", [PART, "_run/receipts/part-00003.json", "_run/partials/part-00001.arrow", "summary/engineered.json"]
)
@pytest.mark.parametrize("harm", ["gone", "truncated", "one bit"])
def test_what_is_advised_mends_it(harm: str, file: str, done: Job) -> None:
    before = digests(done.output)
    path = done.output / file
    if harm == "gone":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        flip(path, 300)
    expected = {"gone": "is missing", "truncated": "bytes instead of", "one bit": "has another content"}[harm]
    (problem,) = problems(done.verify())
    assert problem.startswith(f"{file} ") and expected in problem
    assert "remove _SUCCESS" in problem and "--resume" in problem
    assert ("its partition again" in problem) == ("/part-" in file)
    done.advised(file)
    assert problems(done.verify(recompute="100%")) == []
    assert digests(done.output) == before


def test_a_swapped_pair_of_parts(done: Job) -> None:
    first, second = done.output / PART, done.output / "engineered/part-00005.parquet"
    first.rename(done.folder / "kept")
    second.rename(first)
    (done.folder / "kept").rename(second)
    assert [problem.split()[0] for problem in problems(done.verify())] == [PART, "engineered/part-00005.parquet"]


def test_a_swapped_pair_that_every_record_agrees_with(done: Job) -> None:
    """Only the rows' own ids tell, which are compared where rows are computed again."""
    first, second = done.output / PART, done.output / "engineered/part-00005.parquet"
    first.rename(done.folder / "kept")
    second.rename(first)
    (done.folder / "kept").rename(second)
    forge(done.output)
    assert problems(done.verify()) == []
    found = problems(done.verify(recompute="100%"))
    assert [problem.split()[0] for problem in found] == [PART, "engineered/part-00005.parquet"]
    assert "column 'source_file'" in found[0]


def test_an_added_file(done: Job) -> None:
    shutil.copy(done.output / PART, done.output / "engineered/part-00008.parquet")
    (done.output / "engineered/.hidden").write_text("of an editor")
    (problem,) = problems(done.verify())
    assert problem.startswith("engineered/part-00008.parquet is there, but no run wrote it. Move it away")


@pytest.mark.parametrize("recorded", [False, True])
def test_an_edited_summary(recorded: bool, done: Job) -> None:
    path = done.output / "summary/engineered.json"
    path.write_text(path.read_text().replace('"rank": 1,', '"rank": 9,'))
    if recorded:  # in run.json too, but not in _SUCCESS
        info = json.loads((done.output / "run.json").read_bytes())
        (entry,) = (entry for entry in info["files"] if entry["path"] == "summary/engineered.json")
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        write_as_run_does(done.output / "run.json", info)
    (problem,) = problems(done.verify())
    assert problem.startswith("run.json is not the one" if recorded else "summary/engineered.json has another content")


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_a_summary_that_every_record_agrees_with_but_the_partitions(form: str, done: Job) -> None:
    path = done.output / f"summary/engineered.{form}"
    if form == "json":
        path.write_text(path.read_text().replace('"count": 1600', '"count": 1601', 1))
    else:
        rewrite(path, add_to("mean_abs", 0, 1e-9))
    forge(done.output)
    (problem,) = problems(done.verify())
    assert problem.startswith(f"summary/engineered.{form} is not what the partitions' own summaries add up to")
    done.advised(f"summary/engineered.{form}")
    assert problems(done.verify()) == []


@pytest.mark.parametrize(
    ("change", "file", "wrong"),
    [
        ("rows", "_run/receipts/part-00002.json", "says that 199 rows were read of the partition's 200"),
        ("explained", "_run/receipts/part-00002.json", "does not add up: 200 rows were read, 199 explained"),
        ("run", "_run/receipts/part-00002.json", "belongs to another run"),
        ("swapped receipts", "_run/receipts/part-00002.json", "is the receipt of partition 3"),
        ("version", "_run/receipts/part-00002.json", "cannot be understood"),
        ("short part", PART, "holds 199 rows instead of 200"),
        ("columns", PART, "has other columns"),
        ("metadata", PART, "has other metadata"),
        ("no parquet", PART, "cannot be read as parquet"),
        ("total", "run.json", "says that 1599 rows were explained; plan and receipts say 1600"),
        ("unlisted", PART, "has other records in its receipt and in run.json"),
        ("form", "run.json", "is not in the form"),
        ("id", "_run/id", "names another run"),
    ],
)
def test_records_that_agree_with_the_files_but_not_with_each_other(
    change: str, file: str, wrong: str, done: Job
) -> None:
    receipt, part, info = (done.output / path for path in ("_run/receipts/part-00002.json", PART, "run.json"))
    content = json.loads(receipt.read_bytes())
    if change in ("rows", "explained", "run", "version"):
        key, value = {
            "rows": ("rows_in", 199),
            "explained": ("rows_explained", 199),
            "run": ("run_id", "0" * 32),
            "version": ("version", 99),
        }[change]
        write_as_run_does(receipt, {**content, key: value})
    elif change == "swapped receipts":
        other = receipt.with_name("part-00003.json")
        first, second = receipt.read_bytes(), other.read_bytes()
        receipt.write_bytes(second)
        other.write_bytes(first)
    elif change == "short part":
        pq.write_table(pq.read_table(part).slice(1), part)
    elif change == "columns":
        pq.write_table(pq.read_table(part).drop_columns(["f3"]), part)
    elif change == "metadata":
        pq.write_table(pq.read_table(part).replace_schema_metadata({}), part)
    elif change == "no parquet":
        part.write_bytes(b"PAR1")
    elif change == "id":
        (done.output / "_run/id").write_text("another")
    elif change in ("total", "unlisted"):
        found = json.loads(info.read_bytes())
        if change == "total":
            found["rows"]["explained"] -= 1
        else:
            found["files"] = [entry for entry in found["files"] if entry["path"] != PART]
        write_as_run_does(info, found)
    forge(done.output)
    if change == "form":
        info.write_text(json.dumps(json.loads(info.read_bytes())))
        write_as_run_does(done.output / "_SUCCESS", {"run.json": hashlib.sha256(info.read_bytes()).hexdigest()})
    assert [p for p in problems(done.verify()) if p.startswith(f"{file} ") and wrong in p], problems(done.verify())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_consistent_forgery_is_found_by_computing_again(dtype: str, job: Job) -> None:
    job.run(dtype=dtype)
    assert problems(job.verify(recompute="100%")) == []
    # beyond the tolerance, but not by much
    rewrite(job.output / PART, add_to("f3", 150, 1e-8 if dtype == "float64" else 1e-4))
    forge(job.output)
    assert problems(job.verify()) == []
    found = job.verify(recompute="100%", seed=4)
    (problem,) = problems(found)
    assert problem.startswith(
        f"{PART} does not hold what the model and the explainer give: of 200 rows that were computed again, 1 "
    )
    assert "column 'f3'" in problem and "in row 550 of 0.parquet" in problem  # third partition of 200, its row 150
    assert found.recomputed is not None and (found.recomputed.rows, found.recomputed.seed) == (1_600, 4)
    assert not found.recomputed.other_versions
    job.advised(PART, dtype=dtype)
    assert problems(job.verify(recompute="100%")) == []


def test_a_difference_within_the_tolerance_is_none(done: Job) -> None:
    rewrite(done.output / PART, add_to("f3", 150, 1e-11))
    forge(done.output)
    assert problems(done.verify(recompute="100%")) == []


@pytest.mark.parametrize(("asked", "rows"), [("0.1%", 2), ("1%", 16), (7, 7), ("7", 7), (5_000, 1_600), ("50.0%", 800)])
def test_so_many_rows_are_computed_again(asked: Any, rows: int, done: Job) -> None:
    found = done.verify(recompute=asked)
    assert problems(found) == [] and found.recomputed is not None and found.recomputed.rows == rows


def test_the_seed_chooses_the_rows(done: Job) -> None:
    """A forged row is found by a seed that chooses it, each time, and not by one that does not."""
    rewrite(done.output / PART, add_to("f3", 150, 1.0))
    forge(done.output)
    found = {seed: bool(done.verify(recompute="30%", seed=seed).problems) for seed in range(8)}
    assert set(found.values()) == {True, False}
    assert {seed: bool(done.verify(recompute="30%", seed=seed).problems) for seed in found} == found
    seeds = {done.verify(recompute=1).recomputed.seed for _ in range(3)}  # type: ignore[union-attr]
    assert len(seeds) == 3


@pytest.mark.parametrize("value", ["0", "0%", "101%", "-1", "many", "", 0, "1e3", "½%"])
def test_no_number_and_no_share(value: Any, done: Job) -> None:
    with pytest.raises(OptionError, match=r"--recompute is '.*'\. Use a number of rows such as 100, or a share"):
        done.verify(recompute=value)


def test_an_input_that_changed(done: Job, engineered: Engineered) -> None:
    """What was written is as it was; only it cannot be computed again."""
    engineered.frame[1_000:1_800].to_parquet(done.folder / "rows/1.parquet", index=False)
    assert problems(done.verify()) == []
    found = done.verify(recompute="100%")
    (problem,) = problems(found)
    assert problem.startswith("1.parquet could not be explained again (1.parquet was changed after the run was planned")
    assert found.recomputed is not None and found.recomputed.rows == 800


@pytest.mark.parametrize("change", ["explainer changed", "explainer gone", "input gone"])
def test_what_is_needed_to_compute_again(change: str, done: Job) -> None:
    if change == "explainer changed":
        done.explainer.write_text(done.explainer.read_text() + "\n")
    elif change == "explainer gone":
        done.explainer.unlink()
    else:
        shutil.rmtree(done.folder / "rows")
    assert problems(done.verify()) == []
    found = problems(done.verify(recompute=1_000))
    assert found and all("Restore" in problem for problem in found), found
    assert ("is another explainer than the run's" in found[0]) == (change == "explainer changed")


def test_a_moved_run_can_be_verified(done: Job) -> None:
    moved = done.output.rename(done.folder / "elsewhere")
    found = bx.verify_run(moved, recompute="10%")
    assert problems(found) == [] and found.recomputed is not None and found.recomputed.rows == 160


def test_options_of_a_later_program_do_not_matter(job: Job) -> None:
    """A plan may hold options that this program does not know."""
    job.stop_after(3)
    place = job.output / "_run/plan.json"
    plan = json.loads(place.read_bytes())
    plan["options"]["something_new"] = [1, 2]
    write_as_run_does(place, plan)
    assert problems(job.verify(recompute="100%")) == []


def test_an_unfinished_run(job: Job) -> None:
    job.stop_after(3)
    found = job.verify(recompute="100%")
    assert (problems(found), found.finished, found.exit_code) == ([], False, 5)
    assert (found.partitions, found.planned_partitions, found.rows) == (3, 8, 600)
    assert found.recomputed is not None and found.recomputed.rows == 600
    flip(job.output / PART, 100)
    (problem,) = problems(job.verify())
    assert problem.startswith(f"{PART} has another content") and "_SUCCESS" not in problem
    (job.output / PART).unlink()
    (problem,) = problems(job.verify())
    assert problem.startswith(f"{PART} is missing")
    shutil.copy(job.output / "engineered/part-00000.parquet", job.output / "engineered/part-00009.parquet")
    assert len(problems(job.verify())) == 2
    (job.output / "engineered/part-00009.parquet").unlink()
    job.run(resume=True)
    assert problems(job.verify(recompute="100%")) == []


def test_a_run_whose_success_is_gone_is_not_finished(done: Job) -> None:
    (done.output / "_SUCCESS").unlink()
    found = done.verify()
    assert (problems(found), found.finished, found.exit_code) == ([], False, 5)


@pytest.mark.parametrize("file", ["run.json", "_run/plan.json", "_run/id"])
def test_a_file_of_the_whole_run_that_is_gone(file: str, done: Job) -> None:
    (done.output / file).unlink()
    (problem,) = problems(done.verify())
    assert problem.startswith(f"{file} is missing")
    assert ("start anew with --overwrite" in problem) == (file == "_run/plan.json")


def test_an_empty_dataset(job: Job, engineered: Engineered) -> None:
    shutil.rmtree(job.folder / "rows")
    (job.folder / "rows").mkdir()
    engineered.frame[:0].to_parquet(job.folder / "rows/0.parquet", index=False)
    job.run()
    found = job.verify(recompute="10%")
    assert problems(found) == [] and found.recomputed is not None and found.recomputed.rows == 0


def test_a_trial(job: Job) -> None:
    job.run(limit=300)
    found = job.verify(recompute="100%")
    assert (problems(found), found.rows) == ([], 300)


def test_predictions_engineered_and_raw(small: Small, tmp_path: Path) -> None:
    """A model's run: labels as predictions, probabilities, two levels, and an id column."""
    small.write(tmp_path / "rows.parquet", small.frame[:600], row_group_size=250)
    output = tmp_path / "out"
    bx.explain_dataset(
        input=tmp_path / "rows.parquet", model=small.model, explainer=small.explainer, output=output,
        partition_rows=250, batch_rows=100, id_columns="customer_id", scheduler="sync",
    )  # fmt: skip
    assert problems(bx.verify_run(output, recompute="100%")) == []
    assert problems(bx.verify_run(output, recompute="5%")) == []
    kept = {path: path.read_bytes() for path in files_of(output)}

    def other_label(table: pa.Table) -> pa.Table:
        labels = table["prediction"].to_pylist()
        labels[7] = next(label for label in set(labels) if label != labels[7])
        at = table.column_names.index("prediction")
        return table.set_column(at, table.schema.field(at), pa.array(labels, table.schema.field(at).type))

    def other_id(table: pa.Table) -> pa.Table:
        ids = table["customer_id"].to_pylist()
        ids[7], ids[8] = ids[8], ids[7]
        return table.set_column(0, table.schema.field(0), pa.array(ids, table.schema.field(0).type))

    probability = next(
        name for name in pq.read_schema(output / "predictions/part-00001.parquet").names if "probability" in name
    )
    raw = pq.read_schema(output / "raw/part-00001.parquet").names[3]
    for table, change, column in (
        ("predictions", other_label, "prediction"),
        ("predictions", add_to(probability, 7, 1e-11), probability),
        ("raw", add_to(raw, 7, 1e-7), raw),
        ("engineered", other_id, "customer_id"),
    ):
        rewrite(output / f"{table}/part-00001.parquet", change)
        forge(output)
        assert problems(bx.verify_run(output)) == []
        (problem,) = problems(bx.verify_run(output, recompute="100%"))
        assert problem.startswith(f"{table}/part-00001.parquet does not hold") and f"'{column}'" in problem
        assert "in row 257 of rows.parquet" in problem
        for path, content in kept.items():
            path.write_bytes(content)


def test_several_outputs(tmp_path: Path) -> None:
    import lightgbm
    import pandas as pd

    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.normal(size=(500, 4)), columns=list("abcd"))
    booster = lightgbm.train(
        {"objective": "multiclass", "num_class": 3, "verbosity": -1, "num_leaves": 7, "num_threads": 1},
        lightgbm.Dataset(frame, (frame.a > 0).astype(int) + (frame.b > 0)),
        num_boost_round=5,
    )
    booster.save_model(tmp_path / "surrogate.txt")
    frame.to_parquet(tmp_path / "rows.parquet", index=False)
    output = tmp_path / "out"
    bx.explain_dataset(
        input=tmp_path / "rows.parquet", explainer=tmp_path / "surrogate.txt", output=output,
        partition_rows=200, scheduler="sync",
    )  # fmt: skip
    assert problems(bx.verify_run(output, recompute="100%")) == []
    part = "engineered/output=2/part-00001.parquet"
    rewrite(output / part, add_to("a", 3, 1e-3))
    forge(output)
    (problem,) = problems(bx.verify_run(output, recompute="100%"))
    assert problem.startswith(f"{part} does not hold")


def test_no_run_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", Path(__file__)):
        with pytest.raises(OptionError, match="There is no run in"):
            bx.verify_run(place)


def test_on_the_command_line(done: Job) -> None:
    invoke = CliRunner().invoke
    right = invoke(cli, ["verify", str(done.output), "--recompute", "1%"])
    assert right.exit_code == 0, right.output
    assert "all right" in right.output and "16 rows (--seed " in right.output
    flip(done.output / PART, 100)
    wrong = invoke(cli, ["verify", str(done.output)])
    assert wrong.exit_code == 6 and "1 thing wrong" in wrong.output and f"- {PART} has another content" in wrong.output
    told = invoke(cli, ["verify", str(done.output), "--recompute", "5", "--seed", "3", "--json"])
    assert told.exit_code == 6
    content = json.loads(told.output)
    assert (content["ok"], content["finished"], content["rows"]) == (False, True, 1_600)
    assert content["recomputed"]["rows"] == 5 and content["recomputed"]["seed"] == 3
    assert [problem["file"] for problem in content["problems"]] == [PART]
    (done.output / PART).unlink()
    (done.output / "_SUCCESS").unlink()
    assert invoke(cli, ["verify", str(done.output)]).exit_code == 6
    for arguments in ([str(done.folder / "nothing")], [str(done.output), "--recompute", "none"]):
        refused = invoke(cli, ["verify", *arguments])
        assert refused.exit_code == 2 and "Traceback" not in refused.output


def test_many_problems_are_cut_short(done: Job) -> None:
    for number in range(60):
        (done.output / f"added-{number:02}").write_text("x")
    shown = CliRunner().invoke(cli, ["verify", str(done.output)]).output
    assert shown.count("no run wrote it") == 50 and "and 10 more" in shown and "60 things wrong" in shown


def test_an_unfinished_run_on_the_command_line(job: Job) -> None:
    job.stop_after(3)
    told = CliRunner().invoke(cli, ["verify", str(job.output)])
    assert told.exit_code == 5
    assert "the run is not finished: 3 of 8 partitions are done" in " ".join(told.output.split())


def test_ids_of_any_type(done: Job) -> None:
    """Parquet has no form for some types, and readers give them back as others: no part is blamed for that."""
    import datetime
    from decimal import Decimal

    rows = pq.read_table(done.folder / "rows/0.parquet")
    count = rows.num_rows
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9)
    ids = {
        "seconds": pa.array([moment] * count, pa.timestamp("s")),
        "zoned": pa.array([moment] * count, pa.timestamp("ns", "Europe/Paris")),
        "clock": pa.array([moment.time()] * count, pa.time32("s")),
        "day": pa.array([moment.date()] * count, pa.date64()),
        "price": pa.array([Decimal("1.50")] * count, pa.decimal128(9, 2)),
        "category": pa.array([f"c{i % 7}" for i in range(count)]).dictionary_encode(),
        "long": pa.array(["x"] * count, pa.large_string()),
        "gaps": pa.array([None if i % 3 else i / 7 for i in range(count)], pa.float64()),
        "not_a_number": pa.array([float("nan")] * count, pa.float32()),
        "small": pa.array([i % 100 for i in range(count)], pa.int8()),
    }
    for name, values in ids.items():
        rows = rows.append_column(name, values)
    pq.write_table(rows, done.folder / "ids.parquet")
    done.run(input=done.folder / "ids.parquet", overwrite=True, id_columns=list(ids))
    assert problems(done.verify()) == []
    assert problems(done.verify(recompute="30%")) == []


def test_an_explainer_that_depends_on_the_batch(tmp_path: Path) -> None:
    """Kernel SHAP draws at random within a batch: whole batches are computed again, as the plan cuts them."""
    import joblib

    frame = pq.read_table(_batch_rows(tmp_path)).to_pandas()
    joblib.dump(BatchMinded(list(frame.columns)), tmp_path / "explainer.pkl")
    output = tmp_path / "out"
    bx.explain_dataset(
        input=tmp_path / "rows.parquet", explainer=tmp_path / "explainer.pkl", output=output,
        partition_rows=200, batch_rows=70, scheduler="sync", trust="tests.test_verify.BatchMinded",
    )  # fmt: skip
    found = bx.verify_run(output, recompute="5%", trust=["tests.test_verify.BatchMinded"])
    assert problems(found) == [] and found.recomputed is not None and found.recomputed.rows == 25


def test_rows_in_quarantine(small: Small, tmp_path: Path) -> None:
    """They are counted; the other rows of their partition are computed again like all."""
    frame = small.frame[:600].copy()
    frame["age"] = frame["age"].astype(float)
    frame.loc[frame.index[[210, 250]], "age"] = float("inf")
    small.write(tmp_path / "rows.parquet", frame, row_group_size=200)
    output = tmp_path / "out"
    bx.explain_dataset(
        input=tmp_path / "rows.parquet", model=small.model, explainer=small.explainer, output=output,
        partition_rows=200, max_bad_rows=5, scheduler="sync",
    )  # fmt: skip
    found = bx.verify_run(output, recompute="100%")
    assert problems(found) == [] and found.rows == 600
    assert found.recomputed is not None and found.recomputed.rows == 598
    assert problems(bx.verify_run(output, recompute=100)) == []  # some of each partition
    rewrite(output / "raw/part-00001.parquet", add_to("age", 10, 1e-6))  # the 11th that is left: rows 210 is not
    forge(output)
    (problem,) = problems(bx.verify_run(output, recompute="100%"))
    assert "of 198 rows that were computed again, 1 differ, the first in column 'age'" in problem
    assert "in row 211 of rows.parquet" in problem
    rewrite(output / "raw/part-00001.parquet", add_to("age", 10, -1e-6))
    part = output / "quarantine/part-00001.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    forge(output)
    (problem,) = problems(bx.verify_run(output))
    assert problem.startswith("quarantine/part-00001.parquet holds 1 rows instead of 2")
    part.unlink()
    (problem,) = problems(bx.verify_run(output))
    assert problem.startswith("quarantine/part-00001.parquet is missing")


def _batch_rows(folder: Path) -> Path:
    rng = np.random.default_rng(2)
    pq.write_table(pa.table({name: rng.normal(size=500) for name in "abc"}), folder / "rows.parquet")
    return folder / "rows.parquet"


class BatchMinded:
    """An explainer whose values depend on the other rows of the batch."""

    def __init__(self, features: list[str]) -> None:
        self._features = features

    def explain(self, rows: Any) -> Any:
        return np.asarray(rows) - np.asarray(rows).mean(axis=0) + np.random.normal(size=np.asarray(rows).shape)
