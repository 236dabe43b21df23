"""The rungs: how each measures an allocation."""
