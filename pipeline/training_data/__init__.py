"""A cache's records for training: staged once, then read in any order by any process."""

from pipeline.training_data.records import StagedRecords
from pipeline.training_data.staging import check_cache, stage_records

__all__ = ["StagedRecords", "check_cache", "stage_records"]
