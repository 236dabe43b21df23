"""The executor on a Ray cluster: strategies' trials by Ray Tune on resident evaluators."""
