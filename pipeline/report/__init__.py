"""The report: one folder that opens from the disk."""

from pipeline.report.cache_figures import CacheFigures, ErrorKind, read_cache_figures
from pipeline.report.page import ReportData, RunCard, TrainingCurve, write_report

__all__ = [
    "CacheFigures",
    "ErrorKind",
    "ReportData",
    "RunCard",
    "TrainingCurve",
    "read_cache_figures",
    "write_report",
]
