"""Store to tables, charts and words."""
