// Nothing but Node: fetch, and the few lines of a parser that the README shows.
let cursor = process.env.FEED_CURSOR;
for (;;) {
  try {
    const headers = { Authorization: "Bearer " + process.env.FEED_KEY, "Last-Event-ID": cursor };
    const response = await fetch(process.env.FEED_URL, { headers });
    if (response.status === 401 || response.status === 403) throw process.exit(77);
    let text = "";
    for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
      const blocks = (text + piece).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const field = name => block.match(new RegExp(`^${name}: ?(.*)$`, "m"))?.[1];
        cursor = field("id") ?? cursor;
        if (field("event") === "signal") console.log(JSON.parse(field("data")).feed_seq);
      }
    }
  } catch { /* the server is away: come again from the cursor */ }
  await new Promise(resolve => setTimeout(resolve, 200));
}
