"""What is trained on: staged once, then read in any order by any process."""

from pipeline.training_data.images import StagedImages, stage_images
from pipeline.training_data.records import StagedRecords
from pipeline.training_data.staging import check_cache, stage_records

__all__ = ["StagedImages", "StagedRecords", "check_cache", "stage_images", "stage_records"]
