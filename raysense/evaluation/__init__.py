"""ONE evaluation: an allocation measured on a rung."""
