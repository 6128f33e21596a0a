"""Entry script of ParallelRunStep (SDK v1) and of parallel jobs (v2): explains the files or rows of each mini-batch.

Its arguments are options of ``batch-explain run``: --output-folder, which all nodes share (v1 has an --output of its
own), and --model and --explainer where they are mounted. Without a plan step before it, all others too.
"""

import batch_explain as bx

script = bx.EntryScript()


def init():
    """Load model and explainer, once in each worker process."""
    script.init()


def run(mini_batch, context=None):
    """Explain the files, or the rows of a DataFrame; at least one element comes back for each."""
    return script.run(mini_batch, context)


def shutdown():
    """End the run if it is complete: summaries, report, run.json."""
    script.shutdown()
