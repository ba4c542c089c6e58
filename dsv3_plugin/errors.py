"""The one exception that reaches a user: a sentence that names the thing and the way out."""


class UserError(Exception):
    """Something the user can mend. The command line prints the sentence and exits with code 2."""


def user_error_in(error: BaseException | None) -> UserError | None:
    """The sentence for the user among the causes of an error; upstream wraps what it calls."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None
