"""What can go wrong between a row and its object; the stores translate their SDK's errors into these."""

from invokeai_saas.errors import SaasError


class BadName(SaasError, ValueError):
    """A name or key that could point anywhere else than to its own object; nothing was touched."""

    status = 400


class ObjectMissing(SaasError, FileNotFoundError):
    """No such object, or not for this user: both answer alike."""

    status = 404

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "no such file"


class AlreadyStored(SaasError):
    """A file of this name was saved before; files of pictures and videos are never overwritten."""

    status = 409


class WriteUndone(SaasError):
    """The row was deleted, or the write given up by recovery, while its file was on the way; the file goes too."""

    status = 409


class StorageUnavailable(SaasError):
    """The store does not answer; the caller may try again."""

    status = 503


class StorageRefused(SaasError):
    """The store answers and refuses our credentials or our bucket: an operator has to look."""

    status = 503


class BadSignature(SaasError):
    """A signed address that is forged, changed, expired or somebody else's. One message for all four."""

    status = 403

    def __init__(self) -> None:
        super().__init__("this address is not valid, or no longer")


class InsideTransaction(SaasError):
    """A file was to be written or removed while a transaction is open: a rollback could not take it back."""
