"""The one exception that reaches a user: a sentence that names the thing and the way out."""


class UserError(Exception):
    """Something the user can mend. The command line prints the sentence and exits with code 2."""
