"""Parquet: the source of truth. Importing this package loads neither torch nor Ray."""

from raysense.store.lock import DriverLock
from raysense.store.schema import SCHEMA_VERSION, TABLES
from raysense.store.store import Store

__all__ = ["SCHEMA_VERSION", "TABLES", "DriverLock", "Store"]
