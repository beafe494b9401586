"""The error of every probe."""


class ProfileError(ValueError):
    """Something could not be measured or must not be compared. One line: where, what was got, what to do."""
