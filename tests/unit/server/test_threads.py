"""Work of hooks in threads while the interpreter ends."""

import threading
from collections.abc import Iterator

import pytest

from wsdeco.server.threads import HookThreads


@pytest.fixture
def threads() -> Iterator[HookThreads]:
    with HookThreads("hooks") as threads:
        yield threads


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread has ended, as far as `concurrent.futures` knows."""
    monkeypatch.setattr("concurrent.futures.thread._shutdown", True)


def name() -> str:
    return threading.current_thread().name


def fail() -> None:
    raise LookupError("not there")


def test_work_is_done_in_threads_of_that_name(threads: HookThreads) -> None:
    assert threads.submit(name).result() == "hooks_0"


@pytest.mark.usefixtures("ending")
def test_work_is_done_while_the_interpreter_ends(threads: HookThreads) -> None:
    assert threads.submit(name).result() == "hooks_last"
    assert threads.submit(divmod, 7, 2).result() == (3, 1)
    assert isinstance(threads.submit(fail).exception(), LookupError)


@pytest.mark.usefixtures("ending")
def test_work_is_done_at_once_when_no_thread_can_be_started(
    threads: HookThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert threads.submit(name).result() == name()


def test_a_pool_that_is_over_takes_no_work(threads: HookThreads) -> None:
    threads.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(name)
