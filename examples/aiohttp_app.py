"""
Points over HTTP with aiohttp.web.

AGENTAPI_BASE_URL=… AGENTAPI_TOKEN=… python examples/aiohttp_app.py 8080
"""

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable

from aiohttp import web
from web_errors import answer

from aio_agentapi import Session, SessionManager, Settings
from aio_agentapi.errors import AgentAPIError

# Who waits longer than a visitor does has waited for nothing.
SETTINGS = Settings(deadline=10.0, max_waiting=1000)
SESSION = web.AppKey("SESSION", Session)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def open_session(app: web.Application) -> AsyncGenerator[None]:
    accounts = {"eur": os.environ["AGENTAPI_TOKEN"]}
    base_url = os.environ["AGENTAPI_BASE_URL"]
    async with SessionManager(
        base_url, accounts=accounts, settings=SETTINGS
    ) as manager:
        app[SESSION] = manager.session("eur")
        yield


@web.middleware
async def on_error(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except AgentAPIError as error:
        status, body = answer(error)
        return web.json_response(body, status=status)


async def points(request: web.Request) -> web.Response:
    balance = await request.app[SESSION].points.balance()
    # As a text: a JSON number would go through a binary float.
    return web.json_response({"points": str(balance)})


async def give(request: web.Request) -> web.Response:
    try:
        gift = await request.json()
        # The reference is made by whoever asks, once for each gift: asking again
        # is harmless then.
        amount, reference = gift["amount"], gift["reference"]
    except (ValueError, LookupError, TypeError):
        wrong = {"error": "a gift is an amount and a reference"}
        return web.json_response(wrong, status=422)
    agent_code = int(request.match_info["agent_code"])
    move = await request.app[SESSION].points.transfer(
        agent_code, amount, reference=reference
    )
    return web.json_response({"moved": str(move.amount), "left": str(move.balance)})


async def health(request: web.Request) -> web.Response:
    state = request.app[SESSION].gate.statistics()
    names = ("limit", "share", "in_use", "waiting", "busy_answers", "late_answers")
    return web.json_response({name: getattr(state, name) for name in names})


def make_app() -> web.Application:
    app = web.Application(middlewares=[on_error])
    app.cleanup_ctx.append(open_session)
    app.router.add_get("/points", points)
    app.router.add_post("/agents/{agent_code:[0-9]+}/points", give)
    app.router.add_get("/health", health)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]))
