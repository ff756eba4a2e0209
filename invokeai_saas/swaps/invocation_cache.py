"""InvokeAI's cache of node outputs, per user: upstream's key is the node alone, and user 2 running user 1's graph got user 1's image.

One cache per process, `max_cache_size` outputs of all users together, the least recently used go first. A hit is looked at again: the
picture that it names may have been deleted through another process, which cannot tell this one.
"""

import hashlib
import re

from invokeai.app.invocations.baseinvocation import BaseInvocation, BaseInvocationOutput
from invokeai.app.services.image_records.image_records_common import ImageRecordNotFoundException
from invokeai.app.services.invocation_cache.invocation_cache_memory import MemoryInvocationCache
from invokeai.app.services.video_records.video_records_common import VideoRecordNotFoundException

from invokeai_saas.db import tenancy
from invokeai_saas.errors import TenantContextMissing

_NAMES = re.compile(r'"(image|video)_name":\s*"([^"]+)"')


class TenantInvocationCache(MemoryInvocationCache):
    """Upstream's cache with keys that begin with the user, whom the context names and nothing else."""

    @staticmethod
    def create_key(invocation: BaseInvocation) -> str:
        """The user and the node; raises TenantContextMissing for work that is nobody's."""
        node = invocation.model_dump_json(exclude={"id"}, warnings=False)
        return f"{_user_id()}:{hashlib.sha256(node.encode()).hexdigest()}"

    def get(self, key: int | str) -> BaseInvocationOutput | None:
        """The caller's own output of the same node, if what it names is still there."""
        if not _is_own(key):
            return None
        output = super().get(key)
        if output is not None and not self._is_there(output):
            self.delete(key)
            return None
        return output

    def save(self, key: int | str, invocation_output: BaseInvocationOutput) -> None:
        """Keep an output of the caller's."""
        if _is_own(key):
            super().save(key, invocation_output)

    def _is_there(self, output: BaseInvocationOutput) -> bool:
        services = self._invoker.services
        told = output.model_dump_json(warnings=False, exclude_defaults=True, exclude_unset=True)
        try:
            for kind, name in _NAMES.findall(told):
                (services.image_records if kind == "image" else services.video_records).get(name)
        except (ImageRecordNotFoundException, VideoRecordNotFoundException):
            return False
        return True


def _user_id() -> str:
    context = tenancy.current()
    if context.user_id is None:
        raise TenantContextMissing("expected a user whose node this is, got system work")
    return context.user_id


def _is_own(key: int | str) -> bool:
    return key.startswith(f"{_user_id()}:") if isinstance(key, str) else False
