from __future__ import annotations

from ssh_server import connection, server

__all__ = ["connection", "server"]
