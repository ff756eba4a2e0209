"""Is the port free? Asked before anything starts: a second server would find out only after it has loaded everything."""

import socket

from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import Settings


def demand_free_port(settings: Settings) -> None:
    """Raise BadSettings where another program listens on SAAS_HOST and SAAS_PORT, or where the host is none of this machine's."""
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise BadSettings(f"SAAS_HOST, SAAS_PORT: expected a free port on an address of this machine, got {error.strerror}") from error
