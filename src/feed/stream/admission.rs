//! The admission of a stream, and its departure.

use std::sync::Arc;
use std::time::Instant;

use super::{Asked, Stream};
use crate::feed::Feed;
use crate::feed::client::{Client, Full, Opening};
use crate::feed::reason::End;
use crate::random::random_between;
use crate::sync::lock;

/// Admits a stream and runs it to its end: writes the response's `head`, and then blocks. Returns why it ended.
///
/// # Errors
/// The limit that is reached; nothing was written then.
pub fn serve(feed: &Arc<Feed>, opening: Opening, head: Vec<u8>, asked: Asked) -> Result<End, Full> {
    let age = feed.options.max_stream_age.map(|most| random_between(most * 4 / 5, most));
    let ends_at = age.and_then(|age| Instant::now().checked_add(age));
    let client = feed.clients.admit(feed, opening, ends_at)?;
    let mut admitted = Admitted { feed, client: &client, end: End::Panicked };
    // The server may have begun to stop before the stream was on the list: then nothing else would end the stream.
    if feed.health.is_stopping() {
        admitted.end = End::Shutdown;
        return Ok(End::Shutdown);
    }
    // The key may have ended after it was checked, and the next refresh may be some time away.
    feed.keys.tell(&client, feed.clock.now());
    feed.key_used(&client);
    let after = asked.cursor.map_or("from now".to_owned(), |cursor| format!("after event {cursor}"));
    log::info!("stream begins: key {:?} from {}, {after}", client.key.name, client.address);
    feed.stats.answered("200");
    lock(&client.writer).push_raw(head);
    admitted.end = Stream::new(feed, &client, asked).run();
    Ok(admitted.end)
}

/// Takes a stream off the list when it ends, also when its thread panics.
struct Admitted<'a> {
    feed: &'a Feed,
    client: &'a Client,
    end: End,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let Self { feed, client, end } = self;
        feed.clients.leave(client);
        // A key's last use is the end of its last stream, not its beginning.
        feed.key_used(client);
        feed.stats.ended(*end);
        log::info!(
            "stream ended: {}: key {:?} from {}, at event {}, {} delivered, {} dropped",
            end.name(),
            client.key.name,
            client.address,
            client.cursor(),
            client.delivered_events(),
            client.dropped_events(),
        );
    }
}
