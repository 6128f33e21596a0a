"""The run: plan, one task, executors, finalize, and the runner that composes them."""
