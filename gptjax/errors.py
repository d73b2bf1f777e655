"""The error that a user can do something about."""


class UserError(Exception):
    """An error whose message is a sentence for the user; the command line prints it and exits with `exit_code`."""

    exit_code = 1
