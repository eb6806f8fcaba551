"""A script that runs cases of the Autobahn suite, with kosoku: `python -m tests.support.autobahn --help`.

It runs in a process of its own: kosoku's cases change `sys.path` and `binascii`, and take the processor from the
server's event loop. What it prints is one JSON array with an object for each case.
"""

import argparse
import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient


async def run(
    url: str, cases: list[str] | None, excluded: list[str] | None, concurrency: int
) -> list[dict[str, object]]:
    """Return the verdicts in the order of the cases."""
    try:
        results = await run_fuzzingclient(url, cases, excluded, concurrency)
    except FailureError as failure:
        results = failure.results
    return [
        {
            "case": result.case_id,
            "behavior": result.behavior.value,
            "closing": result.behavior_close.value,
            "explanation": f"{result.result} {result.result_close}",
            "seconds": result.duration / 1000,
        }
        for result in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.autobahn", description=__doc__)
    parser.add_argument("url", help="of the server under test")
    parser.add_argument("--case", action="append", help="a case, or a pattern such as 6.*; all, if there is none")
    parser.add_argument("--exclude", action="append", help="a case, or a pattern, that does not run")
    parser.add_argument("--concurrency", type=int, default=1, help="cases that run at the same time")
    options = parser.parse_args()
    verdicts = asyncio.run(run(options.url, options.case, options.exclude, options.concurrency))
    json.dump(verdicts, sys.stdout)
    sys.stdout.flush()
    # kosoku's threads have been seen to abort the process in the middle of the interpreter's end.
    os._exit(0)


if __name__ == "__main__":
    main()
