"""The error that a user can do something about."""


class UserError(Exception):
    """An error whose message is a sentence for the user; the command line exits with its `exit_code`."""

    exit_code = 1
