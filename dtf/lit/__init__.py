"""What needs Lightning, and only that: engine, tasks, callbacks, optimisers, checkpoints, building a run."""
