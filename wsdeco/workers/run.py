"""Several processes that serve one app on one port: what their parent does, and what each of them does."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

from wsdeco.config import ConnectionConfig
from wsdeco.connection.slots import Slots
from wsdeco.reasons import ServerError
from wsdeco.routing.application import Application, context_of
from wsdeco.server.banner import print_banner
from wsdeco.server.foreground import serve_in_main_thread
from wsdeco.server.loading import Reference, describe_failure
from wsdeco.server.options import make_server
from wsdeco.workers.board import Board, Place
from wsdeco.workers.cluster import choose_backplane, use_backplane
from wsdeco.workers.link import Link
from wsdeco.workers.process import Task
from wsdeco.workers.reload import watching
from wsdeco.workers.supervisor import Supervisor
from wsdeco.workers.totals import CLIENTS, ROUTES, NoShare, Totals, has_locks, no_locks

__all__ = ["run_workers"]

_RELOAD: Final = 1.0
"""Seconds that connections with the code from before a change get to end."""


def run_workers(
    app: Application, reference: Reference, host: str, port: int, workers: int, options: dict[str, Any]
) -> None:
    """Serve in `workers` processes until a signal.

    Raises:
        ServerError: They cannot start.
        SystemExit: They could not be started, or not be ended in time.
    """
    _check_picklable(options)
    if options.get("reload"):
        # A developer who changes code should not wait for a drain.
        options = options | {"drain_timeout": 0, "drain_delay": 0}
    server = make_server(app, host, port, options)
    with ExitStack() as stack:
        stack.enter_context(server.claimed())
        server.listen(workers)
        totals = stack.enter_context(_totals(app, workers))
        # A system without locks hands no memory to processes either.
        board = None if totals is None else stack.enter_context(closing(Board.create(workers + 1)))
        backplane, brokers = choose_backplane(app)
        for broker in brokers:
            stack.callback(broker.stop)
        paths = [info.path for info in app.route_infos]
        arguments = (reference, host, options, backplane, totals, board)

        def on_death(number: int) -> None:
            for each in (totals, board):
                if each is not None:
                    each.note_death(number)

        supervisor = Supervisor(
            workers,
            Task(_serve_as_worker, (*arguments, paths), server.listeners),
            time_to_end=server.time_to_end,
            beside=brokers,
            on_death=on_death,
            worker_timeout=server.own.worker_timeout,
            patience=_RELOAD if server.own.reload else None,
        )

        def on_ready() -> None:
            # Later workers may run new code, with other routes.
            supervisor.task = Task(_serve_as_worker, (*arguments, []), server.listeners)
            if server.own.reload:
                # Not before: a worker could not be replaced yet.
                stack.enter_context(watching(Path.cwd(), lambda name: supervisor.restart(f"{name} has changed")))
                hint = "Changes of Python files are seen. Press Ctrl-C to stop."
            else:
                hint = f"{workers} worker processes. Press Ctrl-C to stop."
            print_banner(server, hint)

        status = supervisor.run(on_ready, on_end=server.listeners.close)
    if status:
        raise SystemExit(status)


@contextmanager
def _totals(app: Application, workers: int) -> Generator[Totals | None]:
    # The limits of a function of `App.route` are known when it is called.
    configs = [(info.path, info.config) for info in app.route_infos if info.kind != "http"]
    if not has_locks():
        limited = [path for path, config in configs if config and _is_shared(config)]
        if limited:
            raise no_locks(", ".join(limited))
        yield None
        return
    clients = any(config is None or config.max_connections_per_client for _, config in configs)
    with closing(Totals.create(workers + 1, CLIENTS if clients else ROUTES)) as totals:
        yield totals


def _is_shared(config: ConnectionConfig) -> bool:
    return config.max_connections_total is not None or config.max_connections_per_client is not None


def _serve_as_worker(
    link: Link,
    reference: Reference,
    host: str,
    options: dict[str, Any],
    backplane: str | None,
    totals: Totals | None,
    board: Board | None,
    paths: list[str],
) -> None:
    link.take_signals()
    Slots.share = NoShare() if totals is None else totals.share(link.number)
    try:
        app = reference.load()
    except Exception as exc:
        link.failed(describe_failure(exc, reference.module))
        raise SystemExit(1) from None
    try:
        _check_paths(app, paths)
        link.rooms_are_one = use_backplane(app, backplane)
        server = make_server(app, host, link.listeners.port, options)
        server.parent = link
        if server.own.max_connections_per_worker is not None:
            server.ticks.append(_recycling(app, server.own.max_connections_per_worker, link))
        if board is not None:
            server.ticks.append(_counting_together(app, board.place(link.number)))
        serve_in_main_thread(server)
    except ServerError as exc:
        link.failed(str(exc))
        raise SystemExit(1) from None


def _recycling(app: Application, count: int, link: Link) -> Callable[[], None]:
    """Return what asks for another worker as soon as this one has accepted `count` connections."""
    from wsdeco.observe.numbers import numbers_of  # noqa: PLC0415 - only who serves by run() needs it

    stats = numbers_of(context_of(app)).stats

    def tick() -> None:
        if stats.accepted >= count:
            link.be_replaced()

    return tick


def _counting_together(app: Application, place: Place) -> Callable[[], None]:
    from wsdeco.observe.together import count_together  # noqa: PLC0415 - only who serves by run() needs it

    return count_together(context_of(app), place)


def _check_paths(app: Application, paths: list[str]) -> None:
    missing = sorted(set(paths) - {info.path for info in app.route_infos})
    if missing:
        raise ServerError(
            f"a worker process, which imports the module anew, finds nothing on {', '.join(missing)}: register it "
            'at the top level of the module, outside of `if __name__ == "__main__":`'
        )


def _check_picklable(options: dict[str, Any]) -> None:
    for name, value in options.items():
        try:
            pickle.dumps(value)
        except Exception as exc:
            raise ServerError(
                f"{name} cannot be handed to worker processes, since it cannot be pickled: {exc}"
            ) from exc
