"""What an installed wheel must do on any platform: python use_it.py; cibuildwheel runs it too."""

import os
import tempfile
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd

import batch_explain as bx


def main(folder: Path) -> None:
    """Explain rows in memory and, where the engine runs, as a dataset; both by the kernel."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(300, 6)), columns=list("abcdef"))
    booster = lightgbm.train(
        {"verbosity": -1, "num_threads": 1}, lightgbm.Dataset(frame, frame.a * frame.b + frame.c), 20
    )
    booster.save_model(folder / "surrogate.txt")
    expected = booster.predict(frame, pred_contrib=True)[:, :-1]

    explainer = bx.load_explainer(folder / "surrogate.txt")
    np.testing.assert_allclose(explainer.explain(frame).values[0].T, expected, rtol=0, atol=1e-12)
    kernel = explainer.treeshap["kernel"]
    assert kernel in ("baseline", "avx2", "avx512"), kernel

    if os.name == "posix":
        frame.to_parquet(folder / "rows.parquet")
        run = bx.explain_dataset(
            input=folder / "rows.parquet", explainer=folder / "surrogate.txt", output=folder / "out", scheduler="sync"
        )
        found = run.table("engineered").to_table().to_pandas()[list(frame)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        assert run.info["treeshap"]["kernel"] == kernel
    print(bx.__file__, kernel)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
