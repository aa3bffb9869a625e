#!/bin/sh
# curl: no reconnecting of its own, so the loop passes the last id.
cursor=$FEED_CURSOR
last=$(mktemp)
trap 'rm -f "$last"' EXIT
while :; do
    echo "$cursor" >"$last"
    curl -sN -H "Authorization: Bearer $FEED_KEY" -H "Last-Event-ID: $cursor" "$FEED_URL" |
        while IFS= read -r line; do
            case $line in
                "id: "*) id=${line#id: } ;;
                "event: signal") echo "$id"; echo "$id" >"$last" ;;
            esac
        done
    cursor=$(cat "$last")
    sleep 0.2
done
