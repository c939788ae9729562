"""Logins of the chat: a file of names and salted hashes, never of passwords.

python -m serve.logins --name anna >> logins.txt      asks for a password and prints a line for the file
python -m serve.chat --auth logins.txt
"""

import base64
import getpass
import hashlib
import hmac
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command

# Costs of scrypt (RFC 7914): 32 MB and some tenths of a second for each attempt.
_N, _R, _P, _MEMORY = 2**15, 8, 1, 64 * 2**20
_SALT_BYTES = 16


@dataclass
class LoginConfig:
    """Settings of a new login."""

    name: str = field(metadata={"help": "name to log in with"})


def main() -> None:
    """Asks for a password and prints the line of the file."""
    (config,) = parse_config(LoginConfig, description=__doc__ or "")
    if not config.name or ":" in config.name:
        raise UserError(f"name '{config.name}': at least one letter, and no colon")
    password = getpass.getpass("Password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    if not password:
        raise UserError("no password given")
    print(format_login(config.name, password))


def format_login(name: str, password: str) -> str:
    """A line of the file: name, salt and hash."""
    salt = os.urandom(_SALT_BYTES)
    return ":".join([name, base64.b64encode(salt).decode(), base64.b64encode(_hash(password, salt)).decode()])


def load_logins(path: Path) -> Callable[[str, str], bool]:
    """A function that says whether a name and a password belong together.

    Raises:
        UserError: The file is missing, empty, or has a line of another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--auth {path}: unreadable: {error}") from error
    known: dict[str, tuple[bytes, bytes]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            name, salt, digest = line.strip().split(":")
            known[name] = base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)
        except ValueError as error:
            raise UserError(f"--auth {path}, line {number}: not of the form that serve.logins prints") from error
    if not known:
        raise UserError(f"--auth {path}: no login in it; `python -m serve.logins --name NAME` prints one")
    nobody = os.urandom(_SALT_BYTES), b""

    def belongs(name: str, password: str) -> bool:
        salt, digest = known.get(name, nobody)  # an unknown name takes as long as a wrong password
        return hmac.compare_digest(_hash(password, salt), digest)

    return belongs


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, maxmem=_MEMORY)


if __name__ == "__main__":
    run_command(main)
