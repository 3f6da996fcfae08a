"""A run without Lightning: its folder, lock, settings, command lines and their errors, checkpoints."""
