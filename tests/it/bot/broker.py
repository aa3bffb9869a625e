#!/usr/bin/env python3
"""One order, or one look-up, for a broker with an HTTP interface. The order comes as one JSON line on standard input."""

import json
import os
import sys
import urllib.error
import urllib.request

PLACED, REJECTED, HAS_NOT, AWAY = 0, 65, 66, 75
BROKER = os.environ["BROKER_URL"]


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BROKER + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status


def place(order):
    try:
        # The reference is the broker's idempotency key too, where it knows such a thing.
        call("POST", "/orders", {key: order[key] for key in ("order_ref", "symbol", "side", "quantity", "price")})
    except urllib.error.HTTPError as error:
        if error.code in (400, 422):
            return REJECTED  # For good. Nothing else is a rejection.
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return AWAY  # Surely nothing was sent.
        raise
    return PLACED


def look_up(order):
    try:
        call("GET", "/orders/" + order["order_ref"])
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return HAS_NOT  # Only where the broker would surely know it by now.
        raise
    return PLACED


line = sys.stdin.readline()
if not line.endswith("\n"):
    sys.exit(1)  # Cut off: the bot was killed before it could give the order.
order = json.loads(line)
# An exception ends Python with 1, which says nothing about the order: the bot will ask.
sys.exit(look_up(order) if order["type"] == "lookup" else place(order))
