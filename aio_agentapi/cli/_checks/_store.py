"""The store of the shared gate."""

from __future__ import annotations

import time
from typing import Any

from aio_agentapi._budget import key_of
from aio_agentapi.cli._checks._patient import Finding, Patient, ok, wrong
from aio_agentapi.cli._command import shared
from aio_agentapi.errors import GateLostError, UsageError


async def gate(patient: Patient) -> Finding:
    place = patient.place
    if place.gate is None:
        return Finding("skipped", "no shared gate is named")
    try:
        store = shared(place)
    except UsageError as error:
        return wrong(str(error), "see AGENTAPI_REDIS_URL, and the [gate] table")
    try:
        async with patient.step():
            key = key_of(place.token)
            took, ahead = await _ask_store(place.gate["url"], key)
            budget = await store.look(place.token, place.settings.limit)
    except (GateLostError, TimeoutError) as error:
        told = str(error) or "the store did not answer in time"
        remedy = "see whether it runs, and the url: host, port, user and password"
        return wrong(told.removesuffix(". Nothing was sent"), remedy)
    except ValueError:
        # What is in its place there, nobody of ours has written.
        told = "the store holds something else in the place of the gate"
        return wrong(told, "use a database of its own: its number ends the url")
    side = "ahead" if ahead > 0 else "behind"
    told = (
        f"the store answers in {took * 1000:.1f} ms, its clock is {abs(ahead):.1f} s"
        f" {side}; {len(budget.members)} members hold {budget.held} of {budget.limit},"
        f" {budget.quarantined} in quarantine"
    )
    facts = {"seconds": took, "ahead": ahead, "members": len(budget.members)}
    return ok(told, **facts, held=budget.held, quarantined=budget.quarantined)


async def _ask_store(url: str, key: str) -> tuple[float, float]:
    """
    Ask the store for the time, and whether what it has for *key* is a gate's.

    Returns:
        Seconds that it took, and by which its clock is ahead.

    Raises:
        GateLostError: It is not reached, or does not let us in.

        ValueError: It has something else in the place of a gate.
    """
    # Only here: who shares no gate needs no redis-py.
    import redis.asyncio  # noqa: PLC0415 - as above
    from redis.asyncio.retry import Retry  # noqa: PLC0415 - as above
    from redis.backoff import NoBackoff  # noqa: PLC0415 - as above
    from redis.exceptions import AuthenticationError, RedisError  # noqa: PLC0415 - as above

    # Its types are not complete. Asked once: with pauses and more attempts the time
    # would be over before the reason is told.
    driver: Any = redis.asyncio.Redis
    client = driver.from_url(url, retry=Retry(NoBackoff(), 0), decode_responses=True)
    try:
        await client.ping()
        began, start = time.time(), time.monotonic()
        seconds, micros = await client.time()
        took = time.monotonic() - start
        for part in ("members", "state"):
            if await client.type(f"{key}:{part}") not in {"none", "hash"}:
                raise ValueError(part)
    except AuthenticationError:
        # What it says itself is long, and of its own configuration.
        is_given = client.connection_pool.connection_kwargs.get("password")
        what = "needs another" if is_given else "needs"
        msg = f"the store is not reached: it {what} user and password"
    except (RedisError, OSError) as error:
        msg = f"the store is not reached: {error}"
    else:
        return took, seconds + micros / 1e6 - began - took / 2
    finally:
        await client.aclose()
    raise GateLostError(msg)
