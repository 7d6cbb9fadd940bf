"""What carries the stages: command line, config, Ray, stores, receipts, progress."""

__version__ = "0.1.0"
