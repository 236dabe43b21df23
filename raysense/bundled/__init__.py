"""What travels inside the package: the bundled pipeline, its scorer, prompts and the quickstart study."""
