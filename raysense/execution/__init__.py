"""Who does the measuring: strategies' trials on evaluators, in this process or by Ray Tune (`ray/`)."""
