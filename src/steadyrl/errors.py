"""The one base of all errors that are the user's to mend."""


class UserError(ValueError):
    """Something that the user can put right; the command line prints the message alone and exits with status 2."""
