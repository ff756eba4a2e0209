"""InvokeAI's stores of tensors and conditionings, per user: a graph names what it loads, and a name that came from elsewhere loads nothing.

The name that a node gets is SEAL.NAME; upstream's store below knows NAME only. The seal is over user and name with a secret of this
store, which forgets everything at its end, so that nobody makes a name of their own out of somebody else's.
"""

import hashlib
import hmac
import secrets
from typing import TypeVar

from invokeai.app.services.object_serializer.object_serializer_base import ObjectSerializerBase
from invokeai.app.services.object_serializer.object_serializer_common import ObjectNotFoundError
from invokeai.app.services.object_serializer.object_serializer_forward_cache import ObjectSerializerForwardCache

from invokeai_saas.db import tenancy
from invokeai_saas.errors import TenantContextMissing

T = TypeVar("T")


class TenantObjects(ObjectSerializerForwardCache[T]):
    """Upstream's store behind a check of the owner; takes the same arguments."""

    def __init__(self, underlying_storage: ObjectSerializerBase[T], max_cache_size: int = 20) -> None:
        super().__init__(underlying_storage, max_cache_size)
        self._secret = secrets.token_bytes(32)

    def save(self, obj: T) -> str:
        """Store for the caller; returns the name to load it by."""
        user_id = _user_id()
        name = super().save(obj)
        return f"{self._seal(user_id, name)}.{name}"

    def load(self, name: str) -> T:
        """The caller's own object; raises ObjectNotFoundError for anybody else's as for none."""
        found: T = super().load(self._own(name))
        return found

    def delete(self, name: str) -> None:
        """Remove the caller's own object."""
        super().delete(self._own(name))

    def _own(self, name: str) -> str:
        seal, _, inner = name.partition(".")
        if not inner or not hmac.compare_digest(seal.encode(errors="replace"), self._seal(_user_id(), inner).encode()):
            raise ObjectNotFoundError(name)
        return inner

    def _seal(self, user_id: str, name: str) -> str:
        return hmac.new(self._secret, f"{user_id}\0{name}".encode(errors="replace"), hashlib.sha256).hexdigest()[:32]


def _user_id() -> str:
    context = tenancy.current()
    if context.user_id is None:
        raise TenantContextMissing("expected a user whose object this is, got system work")
    return context.user_id
