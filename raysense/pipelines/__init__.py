"""Load a pipeline (hub id, folder, bundled) and sample with common random numbers."""
