# SPDX-License-Identifier: Apache-2.0
"""Errors that a user is meant to read; a message says in one sentence what to do."""


class SRCSMError(Exception):
    """Base of every error that a user is meant to read."""


class VolumeError(SRCSMError):
    """A volume that cannot be read, written or used (unreadable file, NaN, wrong dimensions)."""


class SourceMatchingError(SRCSMError):
    """Intensities for which source matching is undefined."""


class BundleError(SRCSMError):
    """A model folder that is incomplete, altered or of an unknown format."""


class DeviceError(SRCSMError):
    """Device that is unknown, absent or out of memory."""


class DatasetError(SRCSMError):
    """A dataset with faults; the message lists all of them."""


class ConfigError(SRCSMError):
    """A configuration key or value that is unknown or impossible."""


class PromptError(SRCSMError):
    """Boxes or points that cannot be used (inverted, empty, of another grid, an unknown file)."""


class InputError(SRCSMError, ValueError):
    """Arrays or arguments of a call that do not fit: shapes, dtypes, an unknown name."""


class Cancelled(SRCSMError):
    """A cancellation by the user; nothing was written."""
