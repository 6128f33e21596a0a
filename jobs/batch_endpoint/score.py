"""Scoring script of a batch endpoint: explains the files of each mini-batch into the job's output folder.

Model and explainer are those of the deployment's registered model, and results go where the endpoint's caller wants
them; what to change is below: the options of `batch-explain run`. A job's output is a run of batch_explain: parts,
receipts, and, when `batch-explain finalize --output FOLDER` has been called once at the end, summaries and report.
"""

import batch_explain as bx

script = bx.EntryScript(id_columns="customer_id", outputs="predictions,raw,reasons", finalize=False)


def init():
    """Load model and explainer, once in each worker process."""
    script.init()


def run(mini_batch):
    """Explain the files; one element comes back for each."""
    return script.run(mini_batch)
