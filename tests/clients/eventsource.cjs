// npm eventsource, old (2: a `headers` option) and new (3 and later: a `fetch` option): reconnects by itself, with the last id.
const library = require("eventsource");
const EventSource = library.EventSource || library;

const headers = { Authorization: "Bearer " + process.env.FEED_KEY };
const source = new EventSource(process.env.FEED_URL + "?cursor=" + process.env.FEED_CURSOR, {
  headers,
  fetch: (url, init) => fetch(url, { ...init, headers: { ...init.headers, ...headers } }),
});
source.addEventListener("signal", event => console.log(JSON.parse(event.data).feed_seq));
source.onerror = () => { if (source.readyState === 2) { console.log("gave up"); process.exit(1); } };
