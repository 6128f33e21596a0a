"""The portable bundle: an explainer as numbers and text, with no code in it.

A folder of ``bundle.json`` (see :mod:`batch_explain.explainers.manifest`), ``surrogate.txt`` (LightGBM's model text)
or ``linear.npz``, ``feature_map.npz`` where there is a feature map, ``canary.parquet``, and, where it was asked for,
the scikit-learn model itself as ``model.skops``. ``bundle.json`` is written last and holds the checksums of the others:
without it there is no bundle.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
import scipy.sparse as sp

from batch_explain.errors import ArtifactError, OutputRefusedError
from batch_explain.explainers.base import Explainer
from batch_explain.explainers.canary import TOLERANCE, canary_bytes, check_canary, make_canary
from batch_explain.explainers.linear import LinearExplainer
from batch_explain.explainers.manifest import CANARY, FEATURE_MAP, KINDS, MODEL, Manifest
from batch_explain.explainers.npz import npz_bytes, read_npz
from batch_explain.explainers.tree import TreeExplainer
from batch_explain.storage.atomic import FileRecord, new_file, sha256_of
from batch_explain.storage.filesystems import Location

MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 64 << 20
NAMES = {MANIFEST, CANARY, FEATURE_MAP, MODEL, *KINDS.values()}

_LINEAR = {"coefficients": "<f8", "means": "<f8", "intercepts": "<f8", "expected_values": "<f8"}
# as scipy.sparse.save_npz writes a matrix without compression
_MAP = {"format": "|S3", "shape": "<i8", "data": "<f8", "indices": "<i8", "indptr": "<i8"}


def bundle_files(
    explainer: Explainer,
    *,
    task: str | None,
    classes: tuple[Any, ...] | None,
    notes: tuple[str, ...],
    made_by: dict[str, str],
    model: bytes | None = None,
) -> dict[str, bytes]:
    """What a bundle of an explainer consists of.

    Parameters
    ----------
    explainer : TreeExplainer or LinearExplainer
    task : str or None
    classes : tuple or None
        Of the model that it explains.
    notes : tuple of str
        Decisions that a reader of the results must know.
    made_by : dict
        Package -> version.
    model : bytes, optional
        The model as a skops file.

    Returns
    -------
    dict
        Name -> content, ``bundle.json`` last; the same bytes for the same explainer and versions.

    Raises
    ------
    ArtifactError
        If the explainer cannot be written without code.
    """
    files: dict[str, bytes] = {}
    if isinstance(explainer, TreeExplainer) and explainer.background is not None:
        raise ArtifactError(
            "The explainer compares with background rows, which a bundle does not hold. Export it without, and pass "
            "--background to the run."
        )
    if isinstance(explainer, TreeExplainer):
        files[KINDS["tree"]] = explainer.text.encode()
        expected = {name: explainer.expected_values_of(sparse=name == "sparse") for name in ("dense", "sparse")}
        iterations: dict[str, int | None] | None = {
            "dense": explainer.iterations[False],
            "sparse": explainer.iterations[True],
            "probability": explainer.probability_iterations,
        }
    elif isinstance(explainer, LinearExplainer):
        files[KINDS["linear"]] = npz_bytes({name: np.asarray(getattr(explainer, name)) for name in _LINEAR})
        expected, iterations = dict.fromkeys(("dense", "sparse"), explainer.expected_values), None
    else:
        raise ArtifactError(
            f"A {explainer.description.removesuffix(' (through its own explain)')} cannot be exported: its values come "
            "from its own explain(), which is code, and a bundle holds none. Run it from its pickle on the Python and "
            "packages that it was made with, or make a tree or linear explainer for the model (MimicWrapper with a "
            "LightGBM or linear surrogate) and export that."
        )
    if explainer.feature_map is not None:
        files[FEATURE_MAP] = _map_bytes(explainer.feature_map)
    files[CANARY] = canary_bytes(make_canary(explainer))
    if model is not None:
        files[MODEL] = model
    manifest = Manifest(
        kind=explainer.kind,
        task=task,
        classes=classes,
        surrogate_classes=explainer.surrogate_classes,
        engineered_features=explainer.engineered_features,
        raw_features=explainer.raw_features,
        expected_values={name: tuple(values.tolist()) for name, values in expected.items()},
        iterations=iterations,
        shap_values_output="default" if (iterations or {}).get("probability") is None else "probability",
        link=explainer.link,
        notes=notes,
        made_by=made_by,
        files={name: FileRecord(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()},
    )
    return {**files, MANIFEST: manifest.to_bytes()}


def write_bundle(place: Location, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Write the files into a folder, ``bundle.json`` last: what has none is no bundle.

    Raises
    ------
    OutputRefusedError
        If the folder cannot be written, or is not empty: unless it holds a bundle and nothing else, and ``overwrite``
        is given.
    """
    try:
        entries = _entries(place)
        ours = all(name in NAMES or name.endswith(".tmp") for name in entries)
        if entries and (not ours or (MANIFEST in entries and not overwrite)):
            cure = "Choose another place, or pass --overwrite to replace the bundle."
            if not ours:
                cure = "Choose another place: --overwrite only ever replaces a bundle that nothing else lies beside."
            raise OutputRefusedError(f"The output {place} is not empty. {cure}")
        for name in sorted(entries, key=lambda name: name != MANIFEST):
            with suppress(FileNotFoundError):
                place.fs.rm_file(place.join(name).path)
        for name in sorted(files, key=lambda name: name == MANIFEST):
            with new_file(place, name) as stream:
                stream.write(files[name])
    except OSError as error:
        raise OutputRefusedError(
            f"The bundle {place} cannot be written: {error}. Choose another place, or mend its permissions."
        ) from error


def read_bundle(place: Location, tables: Mapping[str, Any], sha256: str | None = None) -> Explainer:
    """Open a bundle, and prove that it gives what it gave where it was made.

    Parameters
    ----------
    place : Location
        Its folder.
    tables : mapping
        ``table_bytes`` and ``make_array``: see :class:`batch_explain.explainers.tree.TreeExplainer`.
    sha256 : str, optional
        What the SHA-256 of ``bundle.json`` must be.

    Raises
    ------
    ArtifactError
        If anything in it is damaged, missing, or not what the format says, or the canary rows get other importances.
    """
    try:
        if not place.join(MANIFEST).exists():
            raise ArtifactError(
                f"The explainer {place} is a folder without {MANIFEST}, so it is no bundle, or one whose export was "
                "stopped. Name a scoring_explainer.pkl, a folder that 'batch-explain export' wrote, or a LightGBM "
                "model text file."
            )
    except OSError as error:
        raise _unreadable(place, error) from error
    try:
        manifest = _manifest(place, sha256)
        files = {name: _read_recorded(place, file) for name, file in manifest.files.items() if name != MODEL}
        return open_files(files, manifest, tables)
    except ArtifactError as error:
        raise ArtifactError(f"The explainer {place}: {error}") from error
    except OSError as error:
        raise _unreadable(place, error) from error


def read_model(place: Location, sha256: str | None = None) -> bytes:
    """The skops file in a bundle, as it was written; ``sha256``: what that of ``bundle.json`` must be.

    Raises
    ------
    ArtifactError
        If there is none, or it is damaged.
    """
    try:
        if not place.join(MANIFEST).exists():
            raise ArtifactError(
                f"it is a folder without {MANIFEST}, so it is no bundle. Name the pickle file in it, or a bundle "
                "that was exported --with-model."
            )
        manifest = _manifest(place, sha256)
        if MODEL not in manifest.files:
            raise ArtifactError(
                "there is no model in the bundle, only an explainer. Name the model's file, or export again with "
                "--with-model."
            )
        return _read_recorded(place, manifest.files[MODEL])
    except ArtifactError as error:
        raise ArtifactError(f"The model {place}: {error}") from error
    except OSError as error:
        raise _unreadable(place, error) from error


def _unreadable(place: Location, error: OSError) -> ArtifactError:
    return ArtifactError(f"The bundle {place} cannot be read: {error}. Check the place and its permissions.")


def read_manifest(place: Location) -> Manifest:
    """What a bundle says of itself; see :func:`read_bundle`, which proves it."""
    try:
        return _manifest(place, None)
    except ArtifactError as error:
        raise ArtifactError(f"The bundle {place}: {error}") from error


def open_files(files: Mapping[str, bytes], manifest: Manifest, tables: Mapping[str, Any]) -> Explainer:
    """The explainer in the files, its canary rows checked; see :func:`read_bundle`."""
    content = files[KINDS[manifest.kind]]
    explainer = _tree(content, manifest, tables) if manifest.kind == "tree" else _linear(content, manifest)
    explainer.raw_features = manifest.raw_features
    if FEATURE_MAP in files:
        explainer.set_feature_map(_read_map(files[FEATURE_MAP]))
    for sparse, name in ((False, "dense"), (True, "sparse")):
        found = explainer.expected_values_of(sparse=sparse) if isinstance(explainer, TreeExplainer) else None
        found, expected = explainer.expected_values if found is None else found, manifest.expected_values[name]
        if len(found) != len(expected) or not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            _refuse(f"its {KINDS[manifest.kind]} has other expected values than {MANIFEST} says")
    explainer.task, explainer.classes = manifest.task, manifest.classes
    explainer.notes += manifest.notes
    explainer.description = f"portable bundle: {explainer.description}"
    check_canary(explainer, files[CANARY])
    return explainer


def is_bundle(place: Location) -> bool:
    """Whether a folder is there: the only artifact that is one."""
    return bool(place.fs.isdir(place.path))


def artifact_digest(place: Location) -> str:
    """SHA-256 of an artifact's file; of a bundle's ``bundle.json``, which holds those of its other files."""
    return sha256_of(place.join(MANIFEST) if is_bundle(place) else place)


def _tree(content: bytes, manifest: Manifest, tables: Mapping[str, Any]) -> TreeExplainer:
    assert manifest.iterations is not None
    dense, sparse, probability = (manifest.iterations[name] for name in ("dense", "sparse", "probability"))
    if (probability is None) != (manifest.shap_values_output == "default"):
        _refuse(f"{MANIFEST} contradicts itself about shap_values_output")
    assert dense is not None and sparse is not None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        _refuse("surrogate.txt is no text")
    explainer = TreeExplainer(
        text,
        engineered_features=manifest.engineered_features,
        iterations=dense,
        sparse_iterations=sparse,
        surrogate_classes=manifest.surrogate_classes,
        probability_iterations=probability,
        **tables,
    )
    if explainer.link != manifest.link:
        _refuse(f"surrogate.txt has another objective than {MANIFEST} says")
    return explainer


def _linear(content: bytes, manifest: Manifest) -> LinearExplainer:
    try:
        arrays = read_npz(content, _LINEAR)
    except ValueError as error:
        _refuse(f"linear.npz: {error}")
    outputs, width = len(manifest.expected_values["dense"]), len(manifest.engineered_features)
    shapes = {"coefficients": (outputs, width), "means": (width,)}
    for name, array in arrays.items():
        if array.shape != shapes.get(name, (outputs,)) or not np.isfinite(array).all():
            _refuse(f"linear.npz: '{name}' has a shape or a number that cannot be")
    return LinearExplainer(
        **arrays,
        engineered_features=manifest.engineered_features,
        surrogate_classes=manifest.surrogate_classes,
        link=manifest.link,
    )


def _map_bytes(weights: sp.csr_matrix) -> bytes:
    # entries stay in their order: raw importances are sums over them, to the bit
    arrays = {name: getattr(weights, name).astype(_MAP[name]) for name in ("data", "indices", "indptr")}
    return npz_bytes({"format": np.array(b"csr"), "shape": np.array(weights.shape, _MAP["shape"]), **arrays})


def _read_map(content: bytes) -> sp.csr_matrix:
    try:
        found = read_npz(content, _MAP)
        if found["format"] != b"csr" or found["shape"].shape != (2,):
            raise ValueError("it is no csr matrix")
        arrays = tuple(np.array(found[name]) for name in ("data", "indices", "indptr"))
        weights = sp.csr_matrix(arrays, shape=tuple(found["shape"].tolist()))
        weights.check_format(full_check=True)
        if not np.isfinite(weights.data).all():
            raise ValueError("it has a weight that is not a number")
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        _refuse(f"{FEATURE_MAP}: {error}")
    return weights


def _manifest(place: Location, sha256: str | None) -> Manifest:
    content = _read(place, MANIFEST, MAX_MANIFEST_BYTES)
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ArtifactError(
            f"its {MANIFEST} has the SHA-256 {found}, and --sha256 says {sha256}. It is another bundle, or it was "
            "changed: get the right one, or mend --sha256."
        )
    return Manifest.from_bytes(content)


def _read_recorded(place: Location, file: FileRecord) -> bytes:
    content = _read(place, file.path, file.bytes)
    if len(content) != file.bytes or hashlib.sha256(content).hexdigest() != file.sha256:
        _refuse(f"{file.path} is not the file that {MANIFEST} names (its checksum differs)")
    return content


def _read(place: Location, name: str, most: int) -> bytes:
    """A file of the bundle; one that is larger than it may be is not read."""
    file = place.join(name)
    try:
        size = int(file.fs.size(file.path))
        if size > most:
            _refuse(f"{name} has {size} bytes instead of {most}")
        with file.open() as stream:
            return stream.read(size + 1)
    except FileNotFoundError:
        _refuse(f"{name} is missing")


def _entries(place: Location) -> list[str]:
    if place.fs.isfile(place.path):
        raise OutputRefusedError(f"The output {place} is a file. Name a folder that is empty or does not exist.")
    if not place.fs.isdir(place.path):
        return []
    return [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in place.fs.ls(place.path, detail=False)]


def _refuse(reason: str) -> NoReturn:
    raise ArtifactError(
        f"the bundle is damaged: {reason}. Copy it again from where it was made, or export it again from the explainer."
    )
