"""What the user can put right: the command prints these messages plainly and ends with status 2.

Each names the value or file, the rule it breaks, and the remedy.
"""


class CommandError(ValueError):
    """Base of all below; itself for options that do not go together."""


class DataError(CommandError):
    """CIFAR-10 is missing, incomplete or damaged, or cannot be saved."""


class DownloadError(DataError):
    """The server was out of reach, or the connection broke off."""


class FolderError(CommandError):
    """The output folder does not suit the run."""
