"""One worker process of a parallel step, as documented: init() of an entry script once, run() for each mini-batch.

Lines of JSON come on stdin and go out on stdout: ``{"files": [...]}`` or ``{"frame": path, "rows": [start, stop]}``,
with ``"context": true`` for the optional second argument; no more lines: shutdown().
"""

import importlib.util
import json
import sys

import pandas as pd

script, *sys.argv[1:] = sys.argv[1:]
spec = importlib.util.spec_from_file_location("entry_script", script)
assert spec is not None and spec.loader is not None
entry = importlib.util.module_from_spec(spec)
spec.loader.exec_module(entry)
answers, sys.stdout = sys.stdout, sys.stderr
entry.init()
for line in sys.stdin:
    task = json.loads(line)
    mini_batch = task.get("files", [])
    if "frame" in task:
        mini_batch = pd.read_parquet(task["frame"]).iloc[slice(*task["rows"])].reset_index(drop=True)
    try:
        found = entry.run(mini_batch, object()) if task.get("context") else entry.run(mini_batch)
        content = found.to_json(orient="split", double_precision=15) if hasattr(found, "to_json") else json.dumps(found)
        answer = {"items": len(found), "content": content}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
if hasattr(entry, "shutdown"):
    entry.shutdown()
