"""The executor on a Ray cluster: strategies' questions as Ray Tune trials on resident evaluators."""
