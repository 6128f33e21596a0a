"""Models in registries: MLflow's (on Azure ML that is the workspace), and those of SDK v1 inside a job."""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_explain.errors import ArtifactError, InterruptedRunError, OptionError, first_line, mask_secrets
from batch_explain.explainers.bundle import is_bundle
from batch_explain.explainers.folders import BUNDLE, EXPLAINER, MODEL, SKOPS, TEXT, explainer_in, model_in
from batch_explain.explainers.load import is_model_text
from batch_explain.explainers.skops_file import is_skops
from batch_explain.storage.filesystems import Location
from batch_explain.storage.registered import AZUREML, MLFLOW

_VERSIONED = re.compile(r"models:/+([^/@]+)/(\d+)(?:/(.*))?")
_NAMED = re.compile(r"models:/+([^/@]+)(?:@([^/]+)|/([^/]+))(?:/(.*))?")
_V1 = re.compile(r"azureml-model:([^:/]+)(?::(\d+))?(?:/(.*))?")
_FOLDER = "batch_explain"  # of the artifacts of the MLflow run that a version is made from


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Parameters
    ----------
    name : str
    version : str
    """

    name: str
    version: str

    @property
    def uri(self) -> str:
        """What ``--model`` and ``--explainer`` take."""
        return f"models:/{self.name}/{self.version}"


def pinned(url: str) -> str:
    """The address with the version that an alias or ``latest`` means at this moment; others stay as they are.

    Raises
    ------
    ArtifactError
        If the registry has no such model, or does not answer.
    """
    if not url.startswith(MLFLOW) or _VERSIONED.fullmatch(url):
        return url
    found = _NAMED.fullmatch(url)
    if found is None:
        raise ArtifactError(f"The address {url} names no version. Write models:/NAME/VERSION or models:/NAME@ALIAS.")
    name, alias, stage, rest = found.groups()
    with _asked(url):
        client = _client()
        if alias is not None:
            version = client.get_model_version_by_alias(name, alias).version
        elif stage.lower() == "latest":
            version = max(int(each.version) for each in client.search_model_versions(f"name = '{name}'"))
        else:
            raise ValueError(f"'{stage}' is neither a version nor 'latest'; stages are not used any more")
    return f"models:/{name}/{version}" + (f"/{rest}" if rest else "")


def fetch(url: str) -> str:
    """A registered model's folder on this machine; fetched once, by whichever process comes first.

    Parameters
    ----------
    url : str
        ``models:/NAME/VERSION``, ``models:/NAME@ALIAS`` or ``azureml-model:NAME[:VERSION]``, and a path below it.

    Returns
    -------
    str

    Raises
    ------
    ArtifactError
        If the registry has no such model, or does not answer.
    """
    if url.startswith(AZUREML):
        return _fetch_v1(url)
    found = _VERSIONED.fullmatch(pinned(url))
    assert found is not None
    name, version, rest = found.groups()
    with _asked(url):
        import mlflow

        registry = hashlib.sha256(mlflow.get_registry_uri().encode()).hexdigest()[:16]
        home = _cache() / registry / name
        target = home / version
        if not target.exists():
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home, prefix=".fetching-") as folder:
                fetched = mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=f"{folder}/whole")
                try:
                    os.rename(fetched, target)
                except OSError:
                    if not target.exists():  # else another process was quicker
                        raise
    return str(target / rest) if rest else str(target)


def _fetch_v1(url: str) -> str:
    found = _V1.fullmatch(url)
    if found is None:
        raise ArtifactError(
            f"The address {url} names no model. Write azureml-model:NAME or azureml-model:NAME:VERSION."
        )
    name, version, rest = found.groups()
    with _asked(url):
        from azureml.core.model import Model

        path = Model.get_model_path(name, version=None if version is None else int(version))
    return os.path.join(path, rest) if rest else str(path)


def register(
    name: str,
    *,
    explainer: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    alias: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Registered:
    """Register a model, its explainer or both as a new version in MLflow's registry.

    Parameters
    ----------
    name : str
    explainer : str or path, optional
        A ``scoring_explainer.pkl``, a bundle's folder, or a LightGBM model text.
    model : str or path, optional
        The fitted pipeline: a pickle or a skops file.
    alias : str, optional
        A name that then means this version, such as ``champion``: ``models:/NAME@champion``.
    tags : mapping, optional
        Of the version.

    Returns
    -------
    Registered

    Raises
    ------
    OptionError
        If there is nothing to register, or MLflow cannot be used.
    ArtifactError
        If a file cannot be read.
    InterruptedRunError
        If the registry failed half-way; no version was made.
    """
    if explainer is None and model is None:
        raise OptionError("There is nothing to register. Pass an explainer, a model, or both.")
    try:
        import mlflow
    except ImportError as error:
        raise OptionError(
            f"Registering needs MLflow's client, which is not installed here ({error}). Install it with: pip install "
            "'batch-explain[mlflow]', on Azure ML with azureml-mlflow beside it."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        digests = _gather(Path(folder), explainer, model)
        try:
            client = mlflow.MlflowClient()
            experiment = client.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default")
            where = experiment.experiment_id if experiment else client.create_experiment("Default")
            run = client.create_run(where, run_name=f"register {name}", tags={"mlflow.source.name": "batch-explain"})
            client.log_artifacts(run.info.run_id, folder, _FOLDER)
            client.set_terminated(run.info.run_id)
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            version = client.create_model_version(
                name, f"{run.info.artifact_uri}/{_FOLDER}", run_id=run.info.run_id, tags={**digests, **(tags or {})}
            ).version
            if alias is not None:
                client.set_registered_model_alias(name, alias, version)
        except Exception as error:  # MLflow's, requests', a database's or a plugin's
            raise InterruptedRunError(
                f"MLflow's registry at {mask_secrets(mlflow.get_registry_uri())} did not take '{name}': "
                f"{first_line(error)}. Check MLFLOW_TRACKING_URI, the name and the credentials, and register it again."
            ) from error
    return Registered(name, str(version))


def _gather(folder: Path, explainer: Any, model: Any) -> dict[str, str]:
    """Copy the artifacts under the names by which they are found again; the digests of their files."""
    digests = {}
    try:
        if explainer is not None:
            place = explainer_in(Location(os.fspath(explainer)))
            if is_bundle(place):
                for name in place.fs.find(place.path):
                    target = folder / BUNDLE / name.removeprefix(place.path).lstrip("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(place.at(name).read_bytes())
                digests["explainer_sha256"] = _sha256((folder / BUNDLE / "bundle.json").read_bytes())
            else:
                content = place.read_bytes()
                (folder / (TEXT if is_model_text(content) else EXPLAINER)).write_bytes(content)
                digests["explainer_sha256"] = _sha256(content)
        if model is not None:
            content = model_in(Location(os.fspath(model))).read_bytes()
            (folder / (SKOPS if is_skops(content) else MODEL)).write_bytes(content)
            digests["model_sha256"] = _sha256(content)
    except OSError as error:
        raise ArtifactError(f"What is to be registered cannot be read: {error}. Check the path.") from error
    return digests


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("batch_explain")) / "registry"


def _client() -> Any:
    import mlflow

    return mlflow.MlflowClient()


class _asked:  # noqa: N801 - reads as what it is: with _asked(url)
    """Turn what a registry's library raises into one paragraph."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ImportError):
            package = "azureml-core (the [automl] extra)" if self._url.startswith(AZUREML) else "the [mlflow] extra"
            raise ArtifactError(
                f"{self._url} needs a package that is not installed here ({error}): install {package}."
            ) from error
        if isinstance(error, Exception):
            said = first_line(Exception(getattr(error, "message", error)))
            raise ArtifactError(
                f"The registered model {self._url} cannot be fetched: {said}. Check the name and version, "
                "MLFLOW_TRACKING_URI or the workspace, and the credentials."
            ) from error
