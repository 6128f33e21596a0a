"""Make the golden bundles: `python tests/data/make.py` on Python 3.10, beside the AutoML stack.

Of each kind: the bundle of a genuine scoring explainer, the features table of a run with its model, and, in
`expected.npz`, what the SDK's own explain() says of the very same rows. Nothing in `expected.npz` is computed by
batch_explain. They are made anew only with a new version of the bundle's format, beside those of the older ones.
"""

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

HOME = Path(__file__).parent
sys.path.insert(0, str(HOME.parent.parent))

import batch_explain as bx  # noqa: E402
from tests.automl_fixtures import KINDS, build, explainers, sdk_explain  # noqa: E402

ROWS = 60
GOLDEN = {"multiclass-sparse": "multiclass", "linear-multiclass": "linear_multiclass"}


def make(name: str, kind: str, scratch: Path) -> None:
    home = HOME / name
    shutil.rmtree(home, ignore_errors=True)
    few = mock.patch.dict(explainers.SURROGATE, n_estimators=10, num_leaves=10)
    with few, mock.patch.dict(KINDS, {kind: replace(KINDS[kind], rows=ROWS)}):
        paths = build([kind], scratch)[kind]
    bx.export_bundle(paths.explainer, home / "bundle", model=paths.model)
    bx.explain_dataset(
        input=paths.raw,
        model=paths.model,
        explainer=paths.explainer,
        output=scratch / name,
        outputs="features",
        scheduler="sync",
    )
    shutil.copytree(scratch / name / "features", home / "features")
    oracle = sdk_explain(paths)
    np.savez(
        home / "expected.npz",
        engineered=oracle.engineered,
        raw=oracle.raw,
        expected_values=oracle.expected_values,
        engineered_features=np.array(oracle.engineered_features),
        raw_features=np.array(oracle.raw_features),
        classes=np.array(oracle.classes),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in GOLDEN.items():
            make(name, kind, Path(folder))
