"""The errors that a person can act on; every job prints them as one line and exits with 2."""


class CrackscanError(Exception):
    """Base of the errors whose message is one line that says what is wrong and what to do; each argument is a line."""


class InputError(CrackscanError):
    """A path, a file or an option that the user gave cannot be used."""


class BundleError(CrackscanError):
    """A model bundle is missing, incomplete or changed since it was written."""


class RunError(CrackscanError):
    """A run directory is refused: locked, damaged, or written with another configuration."""
