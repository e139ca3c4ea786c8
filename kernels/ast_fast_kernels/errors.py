"""The one error that the command line turns into a line for each problem and exit code 2."""


class InputError(ValueError):
    """The user's input cannot be used; the message names the argument, the rule and the value.

    Each argument is one problem. A problem may quote text from outside as it is: whoever prints it
    escapes it (`console.fail`).
    """

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems; each is printed as one line."""
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return "\n".join(self.problems)
