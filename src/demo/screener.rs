//! A screener for the demo: prices move at random; it opens and later closes positions, and corrects prices.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::db::{Connection, Settings};
use crate::error::{Doing, Error};
use crate::random::random_u64;

/// Symbols with their first price, in cents.
const MARKET: [(&str, i64); 5] =
    [("AAPL", 23_110), ("MSFT", 41_590), ("NVDA", 13_870), ("ASML", 70_240), ("SAP", 22_815)];
/// After one signal in this many the screener corrects its price.
const CORRECTIONS: i64 = 6;

struct Symbol {
    name: &'static str,
    cents: i64,
    /// The open position: side that closes it, quantity.
    open: Option<(&'static str, i64)>,
}

/// Writes `rate` signals a second until `stop` gets a message. Blocks.
pub(crate) fn run(settings: &Settings, rate: f64, stop: &Receiver<()>) -> Result<(), Error> {
    let mut connection = Connection::open(settings, "screener").doing("connect the screener")?;
    let mut market = MARKET.map(|(name, cents)| Symbol { name, cents, open: None });
    let pause = Duration::from_secs_f64(1.0 / rate);
    while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let chosen = usize::try_from(below(MARKET.len() as i64)).unwrap_or_default();
        let id = write_signal(&mut connection, &mut market[chosen])?;
        if below(CORRECTIONS) == 0 {
            connection
                .execute("update stock_market.signal set price = price + 0.01 where id = $1", &[&id])
                .doing("correct a signal's price")?;
        }
    }
    Ok(())
}

fn write_signal(connection: &mut Connection, symbol: &mut Symbol) -> Result<i64, Error> {
    // Up to half a per cent up or down.
    let step = symbol.cents / 200;
    symbol.cents += below(2 * step + 1) - step;
    let (action, (side, quantity)) = match symbol.open.take() {
        Some(closing) => ("exit", closing),
        None => {
            let (side, closing_side) = if below(3) == 0 { ("SELL", "BUY") } else { ("BUY", "SELL") };
            let quantity = 10 * (1 + below(20));
            symbol.open = Some((closing_side, quantity));
            ("entry", (side, quantity))
        }
    };
    let row = connection
        .query_one(
            "insert into stock_market.signal (symbol, action, side, quantity, price, strategy) \
             values ($1, $2, $3, $4::bigint, round($5::bigint / 100.0, 2), 'demo') returning id",
            &[&symbol.name, &action, &side, &quantity, &symbol.cents],
        )
        .doing("write a signal")?;
    Ok(row.get(0))
}

/// A random number from 0 to one less than `count`.
fn below(count: i64) -> i64 {
    i64::try_from(random_u64() % count.unsigned_abs()).unwrap_or_default()
}
