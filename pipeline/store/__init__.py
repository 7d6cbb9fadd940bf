"""The cache: units of records with receipts, committed by rename. Start at `open_cache`."""

from pipeline.store.cache import Cache, open_cache

__all__ = ["Cache", "open_cache"]
