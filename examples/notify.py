"""A program posts over HTTP, and the pages that one user has open show it.

Start it with `python examples/notify.py`, listen with `wsdeco connect /users/7`, and post with
`curl -d 'It works' http://127.0.0.1:8000/users/7/notify`.
"""

import os

from starlette.requests import Request
from starlette.responses import PlainTextResponse

from wsdeco import Address, Sink, ws


@ws.handler("/users/{user:int}")
class Page:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        ws.room(f"user:{sink.path_params['user']}").join(sink)


@ws.route("/users/{user:int}/notify", methods=["POST"])
async def notify(user: int, request: Request) -> PlainTextResponse:
    text = (await request.body()).decode(errors="replace")
    reached = await ws.room(f"user:{user}").broadcast(text)
    return PlainTextResponse(f"reached {reached}\n")


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
