"""Errors of accounts, with the status that a route answers. Texts are the same for known and unknown addresses."""

from invokeai_saas.errors import SaasError


class NotSignedIn(SaasError):
    """No credential, or one that is wrong, expired or taken back. One text for all: which it was helps only a thief."""

    status = 401

    def __init__(self, message: str = "expected a valid credential: sign in again") -> None:
        super().__init__(message)


class WrongPassword(SaasError):
    """Address and password do not belong together, the account does not exist, or it is closed."""

    status = 401

    def __init__(self) -> None:
        super().__init__("Incorrect email or password")


class AddressNotVerified(SaasError):
    """The password is right, but nobody has followed the link in the letter yet."""

    status = 403

    def __init__(self) -> None:
        super().__init__("expected a verified address: follow the link in the letter, or sign up again to get a new one")


class LinkInvalid(SaasError):
    """A letter's link that was used, is too old, or never was one."""

    status = 400

    def __init__(self) -> None:
        super().__init__("expected a link that is unused and not expired: ask for a new one")


class AlreadyConfirmed(LinkInvalid):
    """A signup's link of an address that was confirmed meanwhile: by another letter, or by an administrator."""

    def __init__(self) -> None:
        SaasError.__init__(self, "this address is confirmed already: log in, or set a new password")

    def body(self) -> dict[str, str]:
        """For the page, which says it in its language."""
        return {"error": "already_confirmed", "message": str(self)}


class BadAccountInput(SaasError):
    """A field is wrong; the message says what was expected."""

    status = 400


class NotAllowed(SaasError):
    """The role or the key's scopes do not reach this far."""

    status = 403


class NoSuchAccount(SaasError):
    """Not there, or not for this caller to see."""

    status = 404


class LastSuperAdmin(SaasError):
    """The change would leave nobody who can make admins."""

    status = 409

    def __init__(self) -> None:
        super().__init__("expected at least one active super_admin to remain")


class TooManyRequests(SaasError):
    """A rate limit is reached; `retry_after_seconds` goes into the header."""

    status = 429

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"too many requests: try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds
