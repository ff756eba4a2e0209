"""What can go wrong with credits. The database's named constraints become these."""

from typing import Any

from invokeai_saas.errors import SaasError


class InsufficientCredits(SaasError):
    """C-13: not enough credits are available now; nothing was held."""

    status = 402

    def __init__(self, *, remaining: int, required: int) -> None:
        super().__init__(f"expected {required} credits, got {remaining}")
        self.remaining, self.required = remaining, required

    def body(self) -> dict[str, Any]:
        """The body of the 402."""
        return {
            "error": "insufficient_credits",
            "message": f"This needs {self.required} credits; {self.remaining} are left.",
            "remaining_credits": self.remaining,
            "remaining_minutes": round(self.remaining / 60, 1),
            "required_credits": self.required,
        }


class BadCredits(SaasError, ValueError):
    """An amount, a window or a reason that makes no sense; nothing was changed."""

    status = 400


class NoSuchGrant(SaasError):
    """No grant of this source and reference for this user."""

    status = 404


class GrantConflict(SaasError):
    """This reference was granted before, to another user or with another amount."""

    status = 409


class AlreadyHeld(SaasError):
    """The job has its hold already, or had one and was settled."""

    status = 409
