#!/usr/bin/env python3
import json, os, re, sys, urllib.error, urllib.request
from decimal import Decimal

PLACED, UNKNOWN, REJECTED, HAS_NOT, AWAY = 0, 1, 65, 66, 75

def call(path, body=None):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(os.environ["BROKER_URL"] + path, body, headers)
    try:
        urllib.request.urlopen(request, timeout=10).close()
        return PLACED
    except urllib.error.HTTPError as error:
        print(error.code, error.read(200).decode("utf-8", "replace"), file=sys.stderr)
        return error.code
    except urllib.error.URLError as error:
        return AWAY if isinstance(error.reason, ConnectionRefusedError) else UNKNOWN

def place(line):
    head = line.partition(',"signal":')[0] + "}"  # Python may be unable to parse the row itself
    try:
        order = json.loads(head, parse_int=Decimal, parse_float=Decimal)
        body = {name: order[name] for name in ("order_ref", "symbol", "side", "quantity", "price")}
        body = json.dumps(body, default=lambda number: format(number, "f"))
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
        print("cannot read the order:", error, file=sys.stderr)
        return REJECTED
    status = call("/orders", body.encode())
    return REJECTED if status in (400, 422) else status if status in (PLACED, AWAY) else UNKNOWN

def look_up(reference):
    status = call("/orders/" + reference)
    return HAS_NOT if status == 404 else status if status in (PLACED, AWAY) else UNKNOWN

line = sys.stdin.readline()
start = re.match(r'{"type":"(order|lookup)","order_ref":"([^"]+)"', line)
if not start or not line.endswith("\n"):
    sys.exit(UNKNOWN)  # cut off: the bot was killed
kind, reference = start.groups()
sys.exit(look_up(reference) if kind == "lookup" else place(line))
