"""The one error that the command line turns into a single line and exit code 2."""


class InputError(ValueError):
    """The user's input cannot be used; the message names the argument, the rule and the value."""
