"""Records that are one installation for all (decision 21): models and their relations, and whether there is an admin at all.

InvokeAI's routes decide who may change them (super_admins), its own threads install them for nobody in particular; both are system work.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from invokeai.app.services.model_records.model_records_sql import ModelRecordServiceSQL
from invokeai.app.services.model_relationship_records.model_relationship_records_sqlite import SqliteModelRelationshipRecordStorage
from invokeai.app.services.users.users_common import UserDTO
from invokeai.app.services.users.users_default import UserService

from invokeai_saas.accounts.identify import caller_now
from invokeai_saas.db import tenancy


def for_everybody(service: type[Any], *names: str) -> Callable[[type[Any]], type[Any]]:
    """A class decorator: the named methods of `service` run as system work. A name that InvokeAI dropped fails at import."""

    def decorate(cls: type[Any]) -> type[Any]:
        for name in names:
            setattr(cls, name, _as_system(getattr(service, name)))
        return cls

    return decorate


def _as_system(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def shared(*args: Any, **kwargs: Any) -> Any:
        with tenancy.as_system("one installation for all"):
            return method(*args, **kwargs)

    return shared


@for_everybody(
    ModelRecordServiceSQL,
    "add_model",
    "del_model",
    "update_model",
    "replace_model",
    "get_model",
    "get_model_by_hash",
    "exists",
    "search_by_attr",
    "search_by_path",
    "search_by_hash",
    "list_models",
)
class SharedModelRecords(ModelRecordServiceSQL):
    """Upstream's model records."""


@for_everybody(
    SqliteModelRelationshipRecordStorage,
    "add_model_relationship",
    "remove_model_relationship",
    "get_related_model_keys",
    "get_related_model_keys_batch",
)
class SharedModelRelationships(SqliteModelRelationshipRecordStorage):
    """Upstream's relations between models."""


@for_everybody(UserService, "has_admin")
class Users(UserService):
    """Upstream's users: each sees only their own row, and everybody may know whether the server was set up."""

    def get(self, user_id: str) -> UserDTO | None:
        """As upstream; the caller of this request was read a moment ago, when the credential was proved."""
        caller = caller_now.get()
        if caller is None or caller.user_id != user_id:
            return super().get(user_id)
        return UserDTO.model_validate({name: getattr(caller.account, name) for name in UserDTO.model_fields})

    def get_admin_email(self) -> str | None:
        """Upstream shows it to strangers on its login page; an administrator's address is nobody's business."""
        return None
