"""A script that runs cases of the Autobahn suite, with kosoku, against a server: `python -m tests.autobahn --help`.

It runs in a process of its own: kosoku's cases change `sys.path` and `binascii`, and take the processor from the
server's event loop. What it prints is one JSON array with a verdict for each case.
"""

import argparse
import asyncio
import dataclasses
import json
import sys
from dataclasses import dataclass

from kosoku import FailureError, run_fuzzingclient


@dataclass(frozen=True)
class Verdict:
    """What kosoku says of one case.

    Attributes:
        case: Its number, as "6.4.1".
        behavior: Of the messages: "OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED", "FAILED" or "ERROR".
        closing: Of the closing handshake: "OK", "INFORMATIONAL", or what is wrong with it.
        explanation: Why.
    """

    case: str
    behavior: str
    closing: str
    explanation: str


async def run(url: str, cases: list[str] | None, excluded: list[str] | None, concurrency: int) -> list[Verdict]:
    """Return the verdicts in the order of the cases; of the failed ones alone, if there are any."""
    try:
        results = await run_fuzzingclient(url, cases, excluded, concurrency)
    except FailureError as failure:
        results = failure.results
    return [
        Verdict(
            result.case_id,
            result.behavior.value,
            result.behavior_close.value,
            f"{result.result} {result.result_close}",
        )
        for result in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.autobahn", description=__doc__)
    parser.add_argument("url", help="of the server under test")
    parser.add_argument("--case", action="append", help="a case, or a pattern as 6.*; all, if there is none")
    parser.add_argument("--exclude", action="append", help="a case, or a pattern, that does not run")
    parser.add_argument("--concurrency", type=int, default=1, help="cases that run at the same time")
    options = parser.parse_args()
    verdicts = asyncio.run(run(options.url, options.case, options.exclude, options.concurrency))
    json.dump([dataclasses.asdict(verdict) for verdict in verdicts], sys.stdout)


if __name__ == "__main__":
    main()
