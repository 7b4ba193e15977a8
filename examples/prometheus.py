"""Let Prometheus read what a session does; on a stand-in, until it is stopped."""

import asyncio
import sys
from contextlib import suppress

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from aio_agentapi import SessionManager
from aio_agentapi.sandbox import Sandbox

# Before the first session is opened: it asks once whether anybody wants to know.
metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))


async def main(port: int) -> None:
    server, _ = start_http_server(port, "127.0.0.1")
    async with Sandbox() as box:
        accounts = {"eur": box.token("operator")}
        async with SessionManager(box.base_url, accounts=accounts) as manager:
            session = manager.session("eur")
            await session.agents.info()
            print(f"http://127.0.0.1:{server.server_port}/metrics", flush=True)
            while True:
                await asyncio.sleep(1)
                await session.agents.info()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 9464))
