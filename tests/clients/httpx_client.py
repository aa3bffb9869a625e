"""httpx-sse: no reconnecting of its own, so the loop passes the last id."""
import json
import os
import time

import httpx
from httpx_sse import connect_sse

cursor = os.environ["FEED_CURSOR"]
with httpx.Client(timeout=35) as client:
    while True:
        try:
            headers = {"Authorization": "Bearer " + os.environ["FEED_KEY"], "Last-Event-ID": cursor}
            with connect_sse(client, "GET", os.environ["FEED_URL"], headers=headers) as source:
                for event in source.iter_sse():
                    cursor = event.id or cursor
                    if event.event == "signal":
                        print(json.loads(event.data)["feed_seq"], flush=True)
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
