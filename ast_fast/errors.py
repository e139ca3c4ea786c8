"""The one error that the command line turns into a single line and exit code 2."""


class InputError(ValueError):
    """Something that the user gave cannot be used: the message names what, where and the rule."""
