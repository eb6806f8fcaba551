"""Every server that can be measured: what it needs, how it is started, and how it is always stopped."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Final, Protocol

import psutil

from benchmarks.client import HOST, close_connections, open_connections
from benchmarks.machine import command_version, pinned, version_of
from benchmarks.wire import ServerFault
from wsdeco import __version__
from wsdeco.backplanes.choice import BACKPLANE_VARIABLE

CHECKOUT: Final = Path(__file__).resolve().parent.parent

START_TIMEOUT: Final = 30.0
"""Seconds until a server that was started must answer a handshake."""

BUILD_TIMEOUT: Final = 900.0
"""Seconds that building a Rust server may take."""

ANCESTOR_SOURCE: Final = "WSDECO_BENCHMARKS_ANCESTOR"
"""Environment variable: a checkout of `websocket_builder` to build, where the registry does not have the crate."""

SETTLE_TIMEOUT: Final = 5.0
"""Seconds to wait for a server that still works on what is over."""

QUIET: Final = 0.001
"""CPU seconds between two looks below which a server is idle."""

CPU_CLOCK: Final = 2
"""`CPUCLOCK_SCHED`: with a process id it makes the id of the clock of that process, see `clock_getcpuclockid(3)`."""


class EndedAtOnce(ServerFault):
    """The process of a server has ended before it listened."""


class Kind(Enum):
    """In what a server is compared with others."""

    WSDECO = "wsdeco"
    PYTHON = "Python"
    NATIVE = "Python on a server written in C++ or Rust"
    RUST = "Rust"


class Server(Protocol):
    """A server that can be measured.

    Attributes:
        name: What it is called on the command line.
        title: What it is called in tables and pictures.
        kind: In what it is compared with others.
        has_room: It broadcasts what comes in on `/room` to all connections there.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def has_room(self) -> bool: ...

    def missing(self) -> str | None:
        """Return why it cannot be started here, or `None`."""

    def versions(self) -> Mapping[str, str]:
        """Return what it is made of."""
        ...

    def command(self) -> Sequence[str]:
        """Return what starts it, without the port."""
        ...


@dataclass(frozen=True, slots=True)
class PythonServer:
    """A module of `benchmarks.peers`.

    Attributes:
        module: Name of the module.
        packages: Distributions it needs.
        has_room: It broadcasts what comes in on `/room` to all connections there.
    """

    name: str
    title: str
    kind: Kind
    module: str
    packages: tuple[str, ...]
    has_room: bool = False

    def missing(self) -> str | None:
        absent = [package for package in self.packages if version_of(package) is None]
        if absent:
            return f"{', '.join(absent)} not installed (pip install -r benchmarks/requirements.txt)"
        return None

    def versions(self) -> Mapping[str, str]:
        found = {package: version_of(package) or "" for package in self.packages}
        return {"wsdeco": __version__} | found if self.kind is Kind.WSDECO else found

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", f"benchmarks.peers.{self.module}"]


@dataclass(frozen=True, slots=True)
class RustServer:
    """A cargo project beside this module, whose binary is built by `python -m benchmarks --build` alone.

    Attributes:
        crates: The crates whose versions are told.
        has_room: It has no room.
    """

    name: str
    title: str
    kind: Kind
    crates: tuple[str, ...]
    has_room: bool = False

    @property
    def project(self) -> Path:
        return CHECKOUT / "benchmarks" / self.name

    @property
    def target(self) -> Path:
        return _cache(self.name)

    @property
    def binary(self) -> Path:
        return self.target / "release" / f"benchmark-{self.name}"

    @property
    def lock(self) -> Path:
        """The versions that the binary was built from."""
        return self.target / "Cargo.lock"

    def missing(self) -> str | None:
        if self.binary.is_file() and self.lock.is_file():
            return None
        if command_version("cargo") is None:
            return "cargo is not installed"
        return "not built (python -m benchmarks --build)"

    def versions(self) -> Mapping[str, str]:
        lock = tomllib.loads(self.lock.read_text("utf-8"))
        found = {package["name"]: package["version"] for package in lock["package"]}
        return {crate: found.get(crate, "") for crate in self.crates}

    def command(self) -> Sequence[str]:
        return [str(self.binary)]

    def build(self) -> str | None:
        """Build in release mode, outside the checkout; return why that failed, or `None`."""
        command = ["cargo", "build", "--release", "--quiet", "--target-dir", str(self.target)]
        source = os.environ.get(ANCESTOR_SOURCE)
        if source is not None and "websocket_builder" in self.crates:
            command += ["--config", f"patch.crates-io.websocket_builder.path='{Path(source).resolve()}'"]
        try:
            # The command is ours; the path in it is the user's own, and not interpreted by a shell.
            run = subprocess.run(  # noqa: S603
                command, cwd=self.project, capture_output=True, check=False, text=True, timeout=BUILD_TIMEOUT
            )
        except FileNotFoundError:
            return "cargo is not installed"
        except subprocess.TimeoutExpired:
            return f"cargo did not finish within {BUILD_TIMEOUT:g} s"
        if run.returncode != 0:
            return next((line for line in run.stderr.splitlines() if line.startswith("error")), "cargo failed")
        shutil.copyfile(self.project / "Cargo.lock", self.lock)
        return None


@dataclass(frozen=True, slots=True)
class CompiledServer:
    """wsdeco from a compiled wheel, which `python -m benchmarks --build` alone makes of this checkout.

    Attributes:
        kind: It is compared as wsdeco.
        has_room: It broadcasts as wsdeco does.
    """

    name: str
    title: str
    kind: Kind = Kind.WSDECO
    has_room: bool = True

    @property
    def target(self) -> Path:
        return _cache(self.name)

    @property
    def _pure(self) -> PythonServer:
        return PythonServer(self.name, self.title, self.kind, "wsdeco_direct", ASGI)

    def missing(self) -> str | None:
        if not (self.target / "site").is_dir():
            return "not built (python -m benchmarks --build)"
        return self._pure.missing()

    def versions(self) -> Mapping[str, str]:
        return self._pure.versions()

    def command(self) -> Sequence[str]:
        # `-P`: the package of the checkout, where the server is started, must not come first.
        paths = os.pathsep.join((str(self.target / "site"), str(CHECKOUT)))
        return ["env", f"PYTHONPATH={paths}", sys.executable, "-P", *self._pure.command()[1:]]

    def build(self) -> str | None:
        """Compile a wheel and unpack it outside the checkout; return why that failed, or `None`."""
        shutil.rmtree(self.target, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        try:
            subprocess.run(  # noqa: S603 - pip, with paths of our own
                [*pip, "wheel", "--no-deps", "--wheel-dir", str(self.target), str(CHECKOUT)],
                env=os.environ | {"WSDECO_COMPILE": "1"},
                capture_output=True,
                check=True,
                text=True,
                timeout=BUILD_TIMEOUT,
            )
            (wheel,) = self.target.glob("*.whl")
            subprocess.run(  # noqa: S603 - as above
                [*pip, "install", "--no-deps", "--target", str(self.target / "site"), str(wheel)],
                capture_output=True,
                check=True,
                text=True,
                timeout=BUILD_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return f"pip did not finish within {BUILD_TIMEOUT:g} s"
        except subprocess.CalledProcessError as fault:
            said: str = fault.stderr
            return next((line for line in said.splitlines() if "error" in line.lower()), "pip failed")
        return None


def _cache(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "wsdeco-benchmarks" / name


UVICORN: Final = ("uvicorn", "uvloop", "httptools")
ASGI: Final = (*UVICORN, "websockets")

SERVERS: Final[tuple[Server, ...]] = (
    PythonServer("wsdeco-direct", "wsdeco, direct", Kind.WSDECO, "wsdeco_direct", ASGI, has_room=True),
    CompiledServer("wsdeco-compiled", "wsdeco, direct, compiled"),
    PythonServer("wsdeco-asgi", "wsdeco, ASGI on uvicorn", Kind.WSDECO, "wsdeco_app", ASGI, has_room=True),
    PythonServer("bare", "bare ASGI app on uvicorn", Kind.PYTHON, "bare", ASGI),
    PythonServer("starlette", "Starlette on uvicorn", Kind.PYTHON, "starlette", (*ASGI, "starlette"), has_room=True),
    PythonServer("fastapi", "FastAPI on uvicorn", Kind.PYTHON, "fastapi", (*ASGI, "fastapi")),
    PythonServer("litestar", "Litestar on uvicorn", Kind.PYTHON, "litestar", (*ASGI, "litestar"), has_room=True),
    PythonServer("wsproto", "uvicorn with wsproto", Kind.PYTHON, "wsproto", (*UVICORN, "wsproto")),
    PythonServer("websockets", "websockets", Kind.PYTHON, "websockets", ("websockets", "uvloop"), has_room=True),
    PythonServer("aiohttp", "aiohttp", Kind.PYTHON, "aiohttp", ("aiohttp", "uvloop")),
    PythonServer("picows", "picows, raw callback", Kind.PYTHON, "picows", ("picows", "uvloop"), has_room=True),
    PythonServer("tornado", "Tornado", Kind.PYTHON, "tornado", ("tornado", "uvloop")),
    PythonServer("granian", "granian, ASGI", Kind.NATIVE, "granian", ("granian", "uvloop")),
    PythonServer("socketify", "socketify (uWebSockets)", Kind.NATIVE, "socketify", ("socketify",), has_room=True),
    RustServer("ancestor", "websocket_builder (Rust)", Kind.RUST, ("websocket_builder", "axum", "tokio")),
    RustServer("axum", "axum alone (Rust)", Kind.RUST, ("axum", "tokio")),
)


class RunningServer:
    """A server that listens.

    Attributes:
        server: Which one.
        port: Its port on the loopback address.
    """

    def __init__(self, server: Server, port: int, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
        self.server = server
        self.port = port
        self._process = process
        self._log = log
        self._tree: list[psutil.Process] = []

    def wait_until_ready(self) -> None:
        """Return once it listens and answers a handshake.

        Raises:
            EndedAtOnce: The process has ended.
            ServerFault: It takes too long, or does not accept the handshake.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            # A server that cannot have its port ends by itself; whoever has it then must not be measured instead.
            if self._process.poll() is not None:
                raise EndedAtOnce(f"it ended at once: {self.last_words()}")
            with contextlib.suppress(psutil.NoSuchProcess):
                self.find_processes()
                if any(self._listens(process) for process in self._tree):
                    close_connections(open_connections(self.port, 1))
                    return
            time.sleep(0.02)
        raise ServerFault(f"it does not listen after {START_TIMEOUT:g} s: {self.last_words()}")

    def find_processes(self) -> None:
        """Take in which processes it has at this moment."""
        parent = psutil.Process(self._process.pid)
        self._tree = [parent, *parent.children(recursive=True)]

    def _listens(self, process: psutil.Process) -> bool:
        return any(
            found.status == psutil.CONN_LISTEN and found.laddr.port == self.port
            for found in process.net_connections("tcp")
        )

    def cpu_seconds(self) -> float:
        """Return the CPU time, user and system, that its processes have used.

        Raises:
            ServerFault: A process has ended.
        """
        try:
            return sum(cpu_seconds_of(process.pid) for process in self._tree)
        except OSError:
            raise ServerFault(f"a process of it has ended: {self.last_words()}") from None

    @contextlib.contextmanager
    def standing_still(self) -> Generator[None]:
        """Stop its processes, so that all that it is sent meanwhile arrives at once."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    def resident_bytes(self) -> int:
        """Return the resident memory of its processes.

        Raises:
            ServerFault: A process has ended.
        """
        try:
            return sum(process.memory_info().rss for process in self._tree)
        except psutil.NoSuchProcess:
            raise ServerFault(f"a process of it has ended: {self.last_words()}") from None

    def settle(self) -> None:
        """Wait until it has nothing left to do, or for `SETTLE_TIMEOUT`."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        used = self.cpu_seconds()
        quiet = 0
        # Twice, as a process may get no time for a while where others want the core as well.
        while quiet < 2 and time.monotonic() < deadline:
            time.sleep(0.04)
            before, used = used, self.cpu_seconds()
            quiet = quiet + 1 if used - before < QUIET else 0

    def last_words(self) -> str:
        """Return the last line it has written, or how it ended."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else f"exit status {self._process.poll()}"


@contextlib.contextmanager
def running(
    server: Server, *, core: int | None, compression: bool = False, routes: int = 0
) -> Generator[RunningServer]:
    """Start a server on one core, and kill it with all its processes at the end.

    Args:
        server: Which one.
        core: Where it runs; `None` for any.
        compression: Have it agree to permessage-deflate.
        routes: How many routes it has besides, which nobody asks for; only wsdeco and Starlette have any.

    Raises:
        ServerFault: It does not start.
    """
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(_launched(server, core, compression=compression, routes=routes))
        except EndedAtOnce:
            # Somebody may have been quicker to take the port.
            started = stack.enter_context(_launched(server, core, compression=compression, routes=routes))
        yield started


@contextlib.contextmanager
def _launched(server: Server, core: int | None, *, compression: bool, routes: int) -> Generator[RunningServer]:
    port = free_port()
    command = [*server.command(), "--port", str(port), *(["--compression"] if compression else [])]
    command += ["--routes", str(routes)] if routes else []
    with tempfile.TemporaryFile() as log:
        with contextlib.nullcontext() if core is None else pinned(core):
            # The command is one of `SERVERS`. It ends by itself when this end of its standard input is closed.
            process = subprocess.Popen(  # noqa: S603
                command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        try:
            started = RunningServer(server, port, process, log)
            started.wait_until_ready()
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with process:
                pass


def server_called(name: str) -> Server:
    """Return the one of `SERVERS` with this name."""
    return next(each for each in SERVERS if each.name == name)


@contextlib.contextmanager
def joined_by(url: str) -> Generator[None]:
    """Have the servers that are started meanwhile join their rooms by the broker at `url`; none if that is empty."""
    os.environ[BACKPLANE_VARIABLE] = url
    try:
        yield
    finally:
        del os.environ[BACKPLANE_VARIABLE]


def cpu_seconds_of(process: int) -> float:
    """Return the CPU time, user and system, that a process has used.

    Raises:
        OSError: It has ended.
    """
    return time.clock_gettime((~process << 3) | CPU_CLOCK)


def free_port() -> int:
    """Return a port that nobody listens on; not every server can say which one it has chosen by itself."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
