"""The stages of the pipeline: one file each, a frozen config dataclass and `run(config, ...)`."""
