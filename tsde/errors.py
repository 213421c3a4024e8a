"""What can go wrong, as types. Each message says what was expected, what came, where, and what to do.

The library raises these and never prints or exits; the command line maps each type to its exit code.
"""


class TsdeError(Exception):
    """Base of every error a user can cause or must know about."""


class UsageError(TsdeError):
    """An argument makes no sense, alone or beside the others (a horizon of zero, a level of 200)."""


class DataError(TsdeError):
    """A table breaks the data contract; names series, column and row where it can."""


class MissingInputError(TsdeError):
    """A file, directory or model that should be there is not."""


class DivergedError(TsdeError):
    """Training or a solver produced a value that is not finite; names what diverged."""


class CannotWriteError(TsdeError):
    """An output could not be written in full."""


class ConfigError(TsdeError):
    """A configuration has an unknown key, a wrong type or a value out of range; names the field."""


class ArtifactError(TsdeError):
    """A saved predictor or dataset is torn, foreign, altered or from a newer version."""
