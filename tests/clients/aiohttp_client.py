"""aiohttp-sse-client: reconnects by itself, with the last id; gives up after some refused attempts, so a loop begins anew."""
import asyncio
import json
import os

import aiohttp
from aiohttp_sse_client.client import EventSource


async def main():
    cursor = os.environ["FEED_CURSOR"]
    timeout = aiohttp.ClientTimeout(total=None, sock_read=35)
    while True:
        headers = {"Authorization": "Bearer " + os.environ["FEED_KEY"], "Last-Event-ID": cursor}
        try:
            async with EventSource(os.environ["FEED_URL"], headers=headers, timeout=timeout) as events:
                async for event in events:
                    cursor = event.last_event_id or cursor
                    if event.type == "signal":
                        print(json.loads(event.data)["feed_seq"], flush=True)
        except (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError):
            pass
        await asyncio.sleep(0.2)


asyncio.run(main())
