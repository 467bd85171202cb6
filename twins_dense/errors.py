"""The one exception that a user of the package is meant to read."""


class TwinsError(ValueError):
    """Something that the user gave can't be used: a file, a name, a size, a setting.

    The message is one line that shows the value and says what to do. The command line prints it and exits with 2.
    """
