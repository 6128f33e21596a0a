"""Addresses in model registries, which the platforms' own clients turn into folders on this machine."""

from importlib import import_module

MLFLOW, AZUREML = "models:/", "azureml-model:"

_CLIENTS = "batch_explain.integrations.registry"  # by name: no floor below knows a platform


def is_registered(url: str) -> bool:
    """Whether an address is one of a registry."""
    return url.startswith((MLFLOW, AZUREML))


def fetched(url: str) -> str:
    """The folder or file on this machine that an address stands for.

    Raises
    ------
    ArtifactError
        If it cannot be fetched.
    """
    return str(import_module(_CLIENTS).fetch(url))
