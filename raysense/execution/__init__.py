"""Who does the measuring: strategies' questions on evaluators, in this process or as Ray Tune trials (`ray/`)."""
