"""A real PostgreSQL server in a folder of its own, on a socket, as an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

__all__ = ["Postgres", "why_no_postgres"]

PROGRAMS = ("initdb", "pg_ctl", "psql")


def _program(name: str) -> str | None:
    """On PATH, or where Debian puts what is not."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or (str(found[0]) if found else None)


def why_no_postgres() -> str:
    """Why no server can be started here; empty where one can."""
    if missing := [name for name in PROGRAMS if _program(name) is None]:
        return f"needs PostgreSQL ({', '.join(missing)}): apt install postgresql"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL refuses to run as root, and here is neither a user postgres nor nobody"
    return ""


def _user() -> str | None:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


class Postgres:
    """One server with an empty database `postgres`; a context manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has 107 bytes at most
        user = _user() if os.geteuid() == 0 else None
        self._as_user = {} if user is None else {"user": user}

    @property
    def conninfo(self) -> str:
        """As libpq takes it."""
        return f"host={self._folder} port=5432 user=plant dbname=postgres"

    def psql(self, *args: str) -> str:
        """What psql prints: values only, `|` between columns."""
        command = [str(_program("psql")), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.conninfo, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def stop(self) -> None:
        """End it, as a machine that goes down."""
        self._run("pg_ctl", "stop", "-D", f"{self._folder}/data", "-m", "immediate", "-w")

    def start(self) -> None:
        """Start it, again too, and wait until it takes connections."""
        options = f"-k {self._folder} -h '' -p 5432 -c fsync=off"
        self._run("pg_ctl", "start", "-D", f"{self._folder}/data", "-l", f"{self._folder}/log", "-o", options, "-w")

    def _run(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [str(_program(program)), *args],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            **self._as_user,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def __enter__(self) -> Postgres:  # noqa: PYI034 - Self needs Python 3.11
        if self._as_user:
            shutil.chown(self._folder, self._as_user["user"])
        self._run(
            "initdb", "-D", f"{self._folder}/data", "-U", "plant", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"
        )
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(
            [str(_program("pg_ctl")), "stop", "-D", f"{self._folder}/data", "-m", "immediate"],
            check=False,
            capture_output=True,
            cwd=self._folder,
            **self._as_user,  # type: ignore[call-overload]
        )
        shutil.rmtree(self._folder, ignore_errors=True)
