"""requests and sseclient-py: no reconnecting of its own, so the loop passes the last id."""
import json
import os
import time

import requests
import sseclient

cursor = os.environ["FEED_CURSOR"]
while True:
    try:
        headers = {"Authorization": "Bearer " + os.environ["FEED_KEY"], "Last-Event-ID": cursor}
        with requests.get(os.environ["FEED_URL"], headers=headers, stream=True, timeout=35) as response:
            response.raise_for_status()
            for event in sseclient.SSEClient(response).events():
                cursor = event.id or cursor
                if event.event == "signal":
                    print(json.loads(event.data)["feed_seq"], flush=True)
    except requests.RequestException:
        pass
    time.sleep(0.2)
