"""Each performance claim of raysense, one runnable file: `python -m benchmarks.<name>`."""
