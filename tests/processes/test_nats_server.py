"""The private `nats-server`: found, started, started again, and ended, also where it does not behave."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.support.programs import wait_until
from wsdeco import ServerError
from wsdeco.workers.nats_server import NatsServer, find_program

LISTENS: Final = """
folder=$(dirname "$2")
echo '{"nats": [' > "$folder/half.ports"
echo '{"nats": ["nats://127.0.0.1:1234"]}' > "$folder/whole.ports"
"""


@pytest.fixture(autouse=True)
def temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def program(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "nats-server"
    path.write_text(f"#!/bin/sh\n{script}", "utf-8")
    path.chmod(0o700)
    return path


def test_finds_the_program_of_the_wheel() -> None:
    found = find_program()
    assert found is not None
    assert os.access(found, os.X_OK)


@pytest.mark.parametrize("files", [None, []])
def test_without_the_wheel_there_is_no_program(files: list[object] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str) -> list[object]:
        if files is None:
            raise metadata.PackageNotFoundError(name)
        return files

    monkeypatch.setattr(metadata, "files", look_up)
    assert find_program() is None


def test_starts_and_stops() -> None:
    found = find_program()
    assert found is not None
    server = NatsServer(found)
    server.look()
    server.stop()


def test_a_program_that_fails_is_an_error_with_its_last_line(tmp_path: Path) -> None:
    failing = program(
        tmp_path, 'echo first > "$(dirname "$2")/nats.log"; echo why >> "$(dirname "$2")/nats.log"; exit 7'
    )
    with pytest.raises(ServerError, match=r"^nats-server, which carries the rooms between workers, cannot start: why$"):
        NatsServer(failing)


def test_a_program_that_does_not_listen_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"cannot start: no port within 0\.05 s, exit status -9$"):
        NatsServer(program(tmp_path, "exec sleep 600"), start_time=0.05)


def test_a_program_that_ignores_the_signal_to_end_is_killed(tmp_path: Path) -> None:
    server = NatsServer(program(tmp_path, f"trap '' TERM\n{LISTENS}\nwhile :; do sleep 0.05; done"), stop_time=0.05)
    assert server.url.endswith("@127.0.0.1:1234")
    server.stop()


def test_a_program_that_dies_again_and_again_is_started_less_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = program(tmp_path, f"echo $$ >> {tmp_path}/started\n{LISTENS}\nexec sleep 600")
    server = NatsServer(started, delays=(0.0, 0.05))

    def starts() -> list[int]:
        return [int(line) for line in (tmp_path / "started").read_text("utf-8").split()]

    for deaths in (1, 2, 3):
        os.kill(starts()[-1], signal.SIGKILL)

        def look(deaths: int = deaths) -> bool:
            server.look()
            return len(starts()) == deaths + 1

        wait_until(look)
    server.stop()
    assert len(caplog.messages) == 3


def test_a_program_that_has_died_can_be_stopped(tmp_path: Path) -> None:
    started = program(tmp_path, f"echo $$ > {tmp_path}/pid\n{LISTENS}\nexec sleep 600")
    server = NatsServer(started, delays=(60.0,))
    pid = int((tmp_path / "pid").read_text("utf-8"))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    server.look()
    server.look()
    server.stop()


def test_a_system_without_room_for_the_program_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, temporary_folder: Path
) -> None:
    started = program(tmp_path, f"echo $$ >> {tmp_path}/started\n{LISTENS}\nexec sleep 600")
    server = NatsServer(started, delays=(0.0,))
    os.kill(int((tmp_path / "started").read_text("utf-8")), signal.SIGKILL)
    # As what removes old temporary files does.
    for folder in temporary_folder.iterdir():
        shutil.rmtree(folder)

    def fail(*arguments: object, **options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no room")

    def is_tried() -> bool:
        server.look()
        return "cannot be started again now" in caplog.text

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", fail)
        wait_until(is_tried)

    def is_started() -> bool:
        server.look()
        return len((tmp_path / "started").read_text("utf-8").split()) == 2

    wait_until(is_started)
    server.stop()
