"""InvokeAI's sockets, opened by what opens its routes: a login, an API key or a provider's token, and closed when that ends.

    handshake ─► identify ─► upstream's rooms, as this user          every 30 s: does the login still stand?
"""

from typing import Any

from starlette.concurrency import run_in_threadpool

from invokeai_saas.accounts import tokens
from invokeai_saas.accounts.identify import identify, internal_token
from invokeai_saas.accounts.model import Accounts, Principal
from invokeai_saas.db import tenancy
from invokeai_saas.errors import SaasError
from invokeai_saas.swaps.rooms import TenantRooms


class TenantSockets(TenantRooms):
    """Upstream's sockets; set `accounts` before the server starts."""

    accounts: Accounts

    async def _handle_connect(self, sid: str, environ: dict[str, Any], auth: dict[str, Any] | None) -> bool:
        with tenancy.as_nobody():
            try:
                caller, token = await run_in_threadpool(self._caller, _credential(environ, auth))
            except SaasError:
                return False
            with tenancy.as_user(caller.user_id):
                accepted = bool(await super()._handle_connect(sid, environ, {"token": token}))
        if accepted and sid in self._socket_users:
            self._socket_users[sid]["family_id"] = caller.family_id
        return accepted

    async def _revalidate_socket_users(self) -> None:
        """As upstream, for everybody; and a socket whose login was ended elsewhere is closed."""
        with tenancy.as_system("sockets of all users are looked after"):
            await super()._revalidate_socket_users()
            for sid, family_id, user_id in self._logins():
                if not await run_in_threadpool(self._lives, family_id, user_id):
                    await self._sio.disconnect(sid)

    def _caller(self, credential: str | None) -> tuple[Principal, str]:
        caller = identify(self.accounts, credential)
        caller.demand_scope("read")
        return caller, internal_token(self.accounts, caller)

    def _logins(self) -> list[tuple[str, str, str]]:
        return [
            (sid, str(info["family_id"]), str(info["user_id"])) for sid, info in self._socket_users.items() if info.get("family_id")
        ]

    def _lives(self, family_id: str, user_id: str) -> bool:
        with self.accounts.database.postgres() as cursor:
            return tokens.family_lives(cursor, family_id, user_id)


def _credential(environ: dict[str, Any], auth: dict[str, Any] | None) -> str | None:
    token = auth.get("token") if isinstance(auth, dict) else None
    if isinstance(token, str) and token:
        return token
    header = str(environ.get("HTTP_AUTHORIZATION", ""))
    return header[7:] if header.startswith("Bearer ") else None
