"""Work of hooks in threads while the interpreter ends."""

import threading
from collections.abc import Iterator

import pytest

from wsdeco.server.threads import HookThreads


@pytest.fixture
def pool() -> Iterator[HookThreads]:
    with HookThreads("hooks") as pool:
        yield pool


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread has ended, as far as `concurrent.futures` knows."""
    monkeypatch.setattr("concurrent.futures.thread._shutdown", True)


def name() -> str:
    return threading.current_thread().name


def fail() -> None:
    raise LookupError("not there")


def test_work_is_done_in_threads_of_that_name(pool: HookThreads) -> None:
    assert pool.submit(name).result() == "hooks_0"


@pytest.mark.usefixtures("ending")
def test_work_is_done_while_the_interpreter_ends(pool: HookThreads) -> None:
    assert pool.submit(name).result() == "hooks_last"
    assert pool.submit(divmod, 7, 2).result() == (3, 1)
    assert isinstance(pool.submit(fail).exception(), LookupError)


@pytest.mark.usefixtures("ending")
def test_work_is_done_at_once_when_no_thread_can_be_started(pool: HookThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert pool.submit(name).result() == name()


@pytest.mark.usefixtures("ending")
def test_work_that_nobody_waits_for_any_more_is_not_done(pool: HookThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    done: list[None] = []

    def start(thread: threading.Thread) -> None:
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    assert pool.submit(done.append, None).cancel()
    started[0].run()
    assert done == []


def test_a_pool_that_is_over_takes_no_work(pool: HookThreads) -> None:
    pool.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(name)
