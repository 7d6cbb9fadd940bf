"""Errors of the store."""

from __future__ import annotations

from ltrp_core.errors import DamagedFileError, RequestError


class DamagedUnitError(DamagedFileError):
    """A unit's files are not what its receipt says, or do not read back as written."""


class RunMismatchError(RequestError):
    """The folder holds the output of a run with other options, weights or schema."""


class LockedError(RequestError):
    """Another live process is writing to the folder."""
