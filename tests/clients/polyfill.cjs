// npm event-source-polyfill in Node, which has no XMLHttpRequest: it uses fetch. It reconnects by itself, with the last id in
// the URL as ?lastEventId=, where ?cursor= would win.
const { EventSourcePolyfill } = require("event-source-polyfill");

const source = new EventSourcePolyfill(process.env.FEED_URL + "?lastEventId=" + process.env.FEED_CURSOR, {
  headers: { Authorization: "Bearer " + process.env.FEED_KEY },
});
source.addEventListener("signal", event => console.log(JSON.parse(event.data).feed_seq));
source.onerror = () => { if (source.readyState === 2) { console.log("gave up"); process.exit(1); } };
