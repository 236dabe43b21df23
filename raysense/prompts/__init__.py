"""Prompts: the files that they come in, the sets that they are split into. No torch here."""
