"""What it takes to log in: keys for one instance, and the ssh configuration that uses them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import BadInputError
from edgekiln.firmware.virtual_pi.rootfs import USER, find_program

ALIAS = "edgekiln-virtual-pi"
#: Where the files of `Access.server_files` lie in the Pi.
SERVER_DIRECTORY = "/run/edgekiln"

_SSHD_CONFIG = """\
AddressFamily inet
ListenAddress {address}
Port {port}
HostKey {directory}/ssh_host_ed25519_key
AuthorizedKeysFile {directory}/authorized_keys
AuthenticationMethods publickey
PermitRootLogin no
AllowUsers {user}
UsePAM no
KexAlgorithms curve25519-sha256
UseDNS no
PrintMotd no
PrintLastLog no
PidFile none
MaxStartups 100
MaxSessions 100
Subsystem sftp /usr/lib/openssh/sftp-server
SetEnv {environment}
"""

_SSH_CONFIG = """\
Host {alias}
  HostName 127.0.0.1
  Port {port}
  User {user}
  HostKeyAlias {alias}
  IdentityFile "{identity}"
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile "{known_hosts}"
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  UpdateHostKeys no
  PreferredAuthentications publickey
  BatchMode yes
"""


@dataclass(frozen=True)
class Access:
    """The files with which one virtual Pi is reached; all in its scratch directory.

    Attributes:
        directory: The scratch directory.
    """

    directory: Path

    @property
    def identity_file(self) -> Path:
        """The private key of the user."""
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The file with the Pi's host key, known before it starts."""
        return self.directory / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """The configuration for ``ssh -F``."""
        return self.directory / "ssh_config"

    @property
    def server_files(self) -> Path:
        """The directory with what the Pi's sshd needs."""
        return self.directory / "etc"

    def make_keys(self) -> None:
        """Makes new keys for the user and the host.

        Raises:
            ToolMissingError: OpenSSH is not installed.
            BadInputError: The directory cannot be used.
        """
        find_program("ssh", "openssh-client")
        keygen = find_program("ssh-keygen", "openssh-client")
        if '"' in str(self.directory) or "\n" in str(self.directory):
            raise BadInputError("ssh cannot use this directory", where=self.directory)
        self.server_files.mkdir()
        host_key = self.server_files / "ssh_host_ed25519_key"
        for path in (self.identity_file, host_key):
            command = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", ALIAS, "-f", str(path)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        public = self.identity_file.with_suffix(".pub").read_text(encoding="ascii")
        (self.server_files / "authorized_keys").write_text(public, encoding="ascii")
        public = host_key.with_suffix(".pub").read_text(encoding="ascii")
        self.known_hosts.write_text(f"{ALIAS} {public}", encoding="ascii")

    def write_configuration(self, port: int, *, guest: tuple[str, int], environment: str) -> None:
        """Writes the configurations of both sides.

        Args:
            port: The port on this machine's loopback interface.
            guest: Address and port at which the Pi's sshd listens.
            environment: A variable for what sshd runs, as ``NAME=value``.
        """
        directory = str(self.directory).replace("%", "%%")
        client = _SSH_CONFIG.format(
            alias=ALIAS,
            port=port,
            user=USER,
            identity=f"{directory}/{self.identity_file.name}",
            known_hosts=f"{directory}/{self.known_hosts.name}",
        )
        server = _SSHD_CONFIG.format(
            address=guest[0],
            port=guest[1],
            directory=SERVER_DIRECTORY,
            user=USER,
            environment=environment,
        )
        self.ssh_config.write_text(client, encoding="utf-8")
        (self.server_files / "sshd_config").write_text(server, encoding="ascii")
