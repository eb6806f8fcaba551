"""Messages with types: JSON comes in as a dataclass, and goes out as one.

Start it with `python examples/json_messages.py` (`pip install 'wsdeco[typed]'`), connect with `wsdeco connect /sum`,
and write `{"numbers": [1, 2, 3]}`.
"""

import os
from dataclasses import dataclass

from wsdeco import ws


@dataclass
class Numbers:
    numbers: list[float]


@dataclass
class Sum:
    total: float


@ws.handler("/sum")
class Adder:
    async def on_message(self, message: Numbers) -> Sum:
        return Sum(sum(message.numbers))


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
