// A complete bot for a signal feed, in Node 18 or later, and in a browser on a page from the feed's own address.
// The three rules that it keeps are in README.md, "Adding a bot".
const url = "http://127.0.0.1:8080/feed", key = "sf_…";
const fs = typeof require === "function" ? require("fs") : null;  // in Node; a browser has localStorage
let cursor = fs ? (fs.existsSync("bot.cursor") ? fs.readFileSync("bot.cursor", "utf8") : "")
                : localStorage.getItem("bot.cursor") ?? "";
const save = () => {
  if (!fs) return localStorage.setItem("bot.cursor", cursor);
  fs.writeFileSync("bot.cursor.new", cursor, { flush: true });
  fs.renameSync("bot.cursor.new", "bot.cursor");
};
const onSignal = event => console.log(event.op, event.signal);
const alertSomebody = text => console.error("ALERT:", text);

const parts = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g;  // JSON.parse rounds numbers: use strings
const parse = text => {
  try { return JSON.parse(text.replace(parts, part => part[0] === '"' ? part : `"${part}"`)); }
  catch { return {}; }
};

async function follow() {  // true: the key has ended
  const abort = new AbortController();
  let timer, text = "", newChain = false;
  const alive = () => { clearTimeout(timer); timer = setTimeout(() => abort.abort(), 35000); };
  try {
    alive();
    const headers = { Authorization: "Bearer " + key, "Last-Event-ID": cursor };
    const response = await fetch(url, { headers, signal: abort.signal });
    if (response.status !== 200) {
      const { error } = parse(await response.text());
      if (/^(missing|unknown|expired|revoked)_key$/.test(error)) {
        alertSomebody(error);
        clearTimeout(timer);
        if (fs) process.exitCode = 77;
        return true;
      }
      throw new Error("status " + response.status);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece; !(piece = await reader.read()).done;) {
      alive();
      const blocks = (text + piece.value).replace(/^:.*\n/gm, "").split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const field = name => block.match(new RegExp(`^${name}: (.*)$`, "m"))?.[1];
        const id = field("id"), isSignal = field("event") === "signal", data = parse(field("data"));
        const reason = isSignal ? "" : data.reason;
        const isGap = ["replay_truncated", "history_rewritten"].includes(reason);
        if (isGap || reason === "quarantined") alertSomebody(field("data"));
        newChain ||= isGap;
        if (isSignal || reason === "quarantined") {
          if (!newChain && BigInt(id) <= BigInt(cursor)) continue;
          if (!newChain && BigInt(data.prev_seq ?? 0) > BigInt(cursor)) throw new Error("a gap");
          newChain = false;
          if (data.signal) await onSignal(data);
          else if (isSignal) alertSomebody("cannot read event " + id);
        }
        if (id) { cursor = id; save(); }
      }
    }
  } catch (error) { console.error("reconnecting:", error.message); }
  clearTimeout(timer);
  abort.abort();
}

(async () => {
  while (!await follow()) await new Promise(go => setTimeout(go, 1000 + 4000 * Math.random()));
})();
