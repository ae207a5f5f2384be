"""Errors, three kinds, named by their remedy. Pure."""


class TartanError(Exception):
    """Root of every error that Tartan raises on purpose."""


class Retry(TartanError):
    """A neighbour is late or away: the same work can succeed after a wait.

    Units: `wait_s` in seconds; None where the caller's own backoff decides.
    """

    def __init__(self, message: str, *, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Quarantine(TartanError):
    """This one fact cannot be processed: it is withheld with its reason, and the others go on."""


class Halt(TartanError):
    """Going on would corrupt state: the process stops with the reason."""
