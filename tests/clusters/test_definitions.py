"""The recipes that need a platform, checked by what the platform's own packages know of them."""

import re
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters.conftest import RECIPES

kubernetes = pytest.importorskip("dask_kubernetes", reason="run by tox -e clusters")

CRDS = Path(kubernetes.__file__).parent / "operator/deployment/helm/dask-kubernetes-operator/crds"


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Of a DaskCluster, as the operator installs it; a name that is not in it is an error, as kubectl has it."""
    (version,) = yaml.load((CRDS / "daskcluster.yaml").read_text(), yaml.CSafeLoader)["spec"]["versions"]
    assert version["name"] == "v1"
    return strict(version["schema"]["openAPIV3Schema"])


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    return found


def errors(schema: dict[str, Any], document: Any) -> list[str]:
    import jsonschema

    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


def without_head(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in ("apiVersion", "kind", "metadata")}


def test_the_dask_cluster(documents: dict[str, Any], schema: dict[str, Any]) -> None:
    cluster = documents["DaskCluster"]
    assert cluster["apiVersion"] == "kubernetes.dask.org/v1"
    assert errors(schema, without_head(cluster)) == []
    wrong = deepcopy(without_head(cluster))
    wrong["spec"]["worker"]["spec"]["containers"][0]["volumeMount"] = []
    assert len(errors(schema, wrong)) == 1
    service = cluster["spec"]["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == cluster["metadata"]["name"]
    ports = {port["name"] for port in cluster["spec"]["scheduler"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["ports"]} == ports


def test_its_job(documents: dict[str, Any], schema: dict[str, Any]) -> None:
    job, worker = documents["Job"], documents["DaskCluster"]["spec"]["worker"]
    pod = job["spec"]["template"]["spec"]
    assert errors(schema["properties"]["spec"]["properties"]["worker"]["properties"]["spec"], pod) == []
    address = f"tcp://{documents['DaskCluster']['metadata']['name']}-scheduler:8786"
    assert pod["initContainers"][0]["command"][2:] == [address, str(worker["replicas"])]
    assert address in pod["containers"][0]["command"]
    # what the run reads and writes is there for the workers, and for nothing less than the same image
    assert pod["volumes"] == worker["spec"]["volumes"]
    images = {each["image"] for each in (*pod["initContainers"], *pod["containers"], *worker["spec"]["containers"])}
    assert len(images) == 1
    rule = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == pod["containers"][0]["name"] and 5 not in rule["values"]


def test_the_azure_job() -> None:
    import azure.ai.ml as ml

    job = ml.load_job(RECIPES / "azure_command_job.yml")
    found = job._validate()
    assert found.passed, found.error_messages
    assert job.distribution.type.lower() == "pytorch" and job.distribution.process_count_per_instance == 1
    assert job.resources.instance_count > 1
    assert set(re.findall(r"\$\{\{inputs\.(\w+)\}\}", job.command)) == set(job.inputs)
    content = yaml.safe_load((RECIPES / "azure_command_job.yml").read_text())
    script = content["command"].split()[1]
    assert (RECIPES / content["code"] / script).is_file()
    assert (RECIPES / content["environment"]["conda_file"]).is_file()


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPES.glob("*.sh")))
def test_the_shell_scripts(script: str) -> None:
    shellcheck = shutil.which("shellcheck")
    assert shellcheck is not None
    subprocess.run([shellcheck, RECIPES / script], check=True)


def test_every_recipe_is_in_the_readme() -> None:
    text = (RECIPES / "README.md").read_text()
    assert [path.name for path in RECIPES.glob("*.*") if path.name not in text and path.name != "README.md"] == []
