"""Addresses of the same places in other tools' spellings, as fsspec's filesystems take them."""

import re
from urllib.parse import unquote

from batch_explain.errors import InputError

_BLOB_HOST = re.compile(r"https?://([a-z0-9]+)\.(blob|dfs)\.(core\.[a-z.]+)/+([^/?#]+)/*([^?#]*)(\?.*)?", re.IGNORECASE)
_WASB = re.compile(r"wasbs?://([^@/]+)@([a-z0-9]+)\.(?:blob|dfs)\.(core\.[a-z.]+)/*(.*)", re.IGNORECASE)
_DATASTORE = re.compile(r"azureml://datastores/([^/]+)(?:/paths)?/*(.*)", re.IGNORECASE)


def canonical(url: str) -> str:
    """Spell an address as fsspec knows it; most stay as they are.

    ``wasbs://CONTAINER@ACCOUNT.blob.core.windows.net/PATH`` and ``https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH``
    are ``abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH``: the same blobs by the same service.

    Raises
    ------
    InputError
        If the address holds a token, which would be written down with it, or needs a workspace to be understood.
    """
    if found := _WASB.fullmatch(url):
        container, account, domain, path = found.groups()
        return _abfs(container, account, domain, path)
    if found := _BLOB_HOST.fullmatch(url):
        account, _, domain, container, path, query = found.groups()
        if query:
            raise InputError(
                f"The address {url.partition('?')[0]} comes with a token behind '?'. An address is written down with "
                "the run, so a token must not stand in it: put it into AZURE_STORAGE_SAS_TOKEN (with "
                "AZURE_STORAGE_ACCOUNT_NAME), and leave the '?' and what follows out."
            )
        return _abfs(container, account, domain, unquote(path))
    if found := _DATASTORE.fullmatch(url):
        name, path = found.groups()
        raise InputError(
            f"The address {url} names the datastore '{name}' of a workspace that it does not name. Inside an Azure ML "
            "job make it the job's input or output, and pass the folder that the job gets; elsewhere pass the blobs "
            f"themselves, abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/{path}, or the long address "
            "azureml://subscriptions/…/datastores/…/paths/… with the package azureml-fsspec installed."
        )
    return url


def _abfs(container: str, account: str, domain: str, path: str) -> str:
    return f"abfs://{container}@{account}.dfs.{domain}/{path}"
