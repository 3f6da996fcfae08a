"""From files to batches: sources of frames, the clip view, transforms, data sets, the loader, the module."""
