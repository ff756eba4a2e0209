"""What the routes of accounts take and answer. Names follow S3-154..161 and InvokeAI's own user, so that its interface reads them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from invokeai.app.services.users.users_common import validate_email_with_special_domains
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from invokeai_saas.accounts.model import Account, Role
from invokeai_saas.accounts.tokens import Tokens


def _printable(text: str) -> str:
    """Raise ValueError for control characters and halves of surrogate pairs: neither belongs in a name, and Postgres refuses some."""
    if not text.isprintable():
        raise ValueError("expected printable characters only")
    return text


def _address(text: str) -> str:
    address: str = validate_email_with_special_domains(_printable(text).strip())
    return address.lower()


def _web_address(text: str) -> str:
    if not text.startswith("https://"):
        raise ValueError("expected an https address")
    return _printable(text)


Email = Annotated[str, Field(max_length=255), AfterValidator(_address)]
Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
AvatarUrl = Annotated[str, Field(max_length=2048), AfterValidator(_web_address)]
# The rules of passwords are passwords.demand_strong()'s; this only bounds what is read.
Password = Annotated[str, Field(max_length=4096)]
Secret = Annotated[str, Field(min_length=1, max_length=512)]


class Strict(BaseModel):
    """A body: unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class SignupRequest(Strict):
    email: Email
    password: Password
    name: Name | None = None


class LoginRequest(Strict):
    """`remember_me` is InvokeAI's; refresh tokens make it needless."""

    email: Email
    password: Password
    remember_me: bool = False


class RefreshRequest(Strict):
    """Left out altogether where the cookie has the token."""

    refresh_token: Secret


class AddressRequest(Strict):
    email: Email


class TokenRequest(Strict):
    token: Secret


class ResetRequest(Strict):
    token: Secret
    password: Password


class DeleteMeRequest(Strict):
    password: Password = ""


class UserUpdate(Strict):
    """S3-161. InvokeAI's interface sends display_name, current_password and new_password here."""

    display_name: Name | None = None
    name: Name | None = None
    avatar_url: AvatarUrl | None = None
    current_password: Password | None = None
    new_password: Password | None = None

    def profile(self) -> dict[str, Any]:
        """The fields that were sent, by the account's names."""
        sent: dict[str, Any] = self.model_dump(exclude_unset=True, include={"display_name", "name", "avatar_url"})
        if "name" in sent:
            sent["display_name"] = sent.pop("name")
        return sent


class AdminUserUpdate(Strict):
    """S3-174."""

    display_name: Name | None = None
    role: Role | None = None
    is_active: bool | None = None

    def sent(self) -> dict[str, Any]:
        """The fields that were sent."""
        sent: dict[str, Any] = self.model_dump(exclude_unset=True)
        return sent


class NewUser(Strict):
    """An account that an admin makes; without a password one is made and answered once."""

    email: Email
    display_name: Name | None = None
    role: Role = "user"
    password: Password | None = None


class AdminUserCreateRequest(Strict):
    """InvokeAI's form of a new user; its empty name is none."""

    email: Email
    display_name: Name | None = None
    password: Password
    is_admin: bool = False


class AdminUserUpdateRequest(Strict):
    """InvokeAI's form of a user: what is not sent stays, a name of null goes."""

    display_name: Name | None = None
    password: Password | None = None
    is_admin: bool | None = None
    is_active: bool | None = None

    def sent(self) -> dict[str, Any]:
        """The fields that were sent."""
        sent: dict[str, Any] = self.model_dump(exclude_unset=True)
        return sent


class KeyRequest(Strict):
    name: Name
    scopes: list[Literal["read", "write"]] = Field(default=["read"], min_length=1)
    expires_in_days: int | None = Field(default=None, ge=1, le=3650)


class UserDTO(BaseModel):
    """InvokeAI's fields, and ours: role, avatar_url, email_verified, read_only."""

    user_id: str
    email: str
    display_name: str | None
    is_admin: bool
    is_active: bool
    created_at: datetime
    updated_at: datetime
    last_login_at: datetime | None
    token_epoch: int
    role: Role
    avatar_url: str | None
    email_verified: bool
    read_only: bool

    @classmethod
    def of(cls, account: Account) -> "UserDTO":
        """From the account as stored."""
        fields = {name: getattr(account, name) for name in cls.model_fields if hasattr(account, name)}
        extra = {"email_verified": account.email_verified_at is not None, "read_only": account.access_ended_at is not None}
        made: UserDTO = cls.model_validate({**fields, **extra})
        return made


class UserDetailDTO(UserDTO):
    """S3-173: an account and what it holds, in numbers."""

    logins: int
    api_keys: int
    images: int
    videos: int
    open_jobs: int


class NewUserDTO(UserDTO):
    """`password` is shown this once, and only when it was made here."""

    password: str | None


class GeneratePasswordResponse(BaseModel):
    """A password that nobody has."""

    password: str


class UserPage(BaseModel):
    """S3-172."""

    items: list[UserDTO]
    page: int
    pages: int
    per_page: int
    total: int


class SignupResponse(BaseModel):
    """S3-154's shape. Both are empty until the address is verified: anything else would tell who has an account."""

    message: str
    user: UserDTO | None = None
    tokens: None = None


class Session(BaseModel):
    """`token`, `user` and `expires_in` are what InvokeAI's interface reads; the rest is S3-155's."""

    token: str
    user: UserDTO
    expires_in: int
    access_token: str
    refresh_token: str | None
    refresh_expires_in: int
    token_type: str = "bearer"

    @classmethod
    def of(cls, account: Account, issued: Tokens) -> "Session":
        """The answer to a login, a verification, a refresh."""
        return cls(
            token=issued.access_token,
            user=UserDTO.of(account),
            expires_in=issued.expires_in,
            access_token=issued.access_token,
            refresh_token=issued.refresh_token,
            refresh_expires_in=issued.refresh_expires_in,
        )


class VerifiedSession(Session):
    """`first_time` is false for an address that was verified here before."""

    first_time: bool = True


class Done(BaseModel):
    """`success` is what InvokeAI's interface reads after a logout."""

    success: bool = True
    message: str | None = None


class KeyDTO(BaseModel):
    """An API key without its secret."""

    key_id: str
    name: str
    scopes: list[str]
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKeyDTO(KeyDTO):
    """`key` is shown this once."""

    key: str


class AuditEntry(BaseModel):
    """One line of the audit log."""

    audit_id: int
    at: datetime
    actor_id: str
    action: str
    target_id: str | None
    details: dict[str, Any]
