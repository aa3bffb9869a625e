//! A screener for the demo: prices move at random; it opens and later closes positions, and corrects prices.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::db::{Connection, Settings};
use crate::error::{Doing, Error};
use crate::random::random_u64;

/// Symbols with their first price, in cents.
const MARKET: [(&str, u64); 8] = [
    ("AAPL", 23_110),
    ("MSFT", 41_590),
    ("NVDA", 13_870),
    ("ASML", 70_240),
    ("SAP", 22_815),
    ("SIE", 18_604),
    ("AIR", 15_762),
    ("RHM", 59_980),
];
const STRATEGIES: [&str; 3] = ["breakout", "mean_reversion", "momentum"];
/// After one signal in this many the screener corrects its price.
const CORRECTIONS: u64 = 6;

struct Symbol {
    name: &'static str,
    cents: u64,
    /// The open position: side, quantity, strategy.
    open: Option<(&'static str, i64, &'static str)>,
}

/// Writes `rate` signals a second until `stop` is disconnected. Blocks.
pub(super) fn run(settings: &Settings, rate: f64, stop: &Receiver<()>) -> Result<(), Error> {
    let mut connection = Connection::open(settings, "screener").doing("connect the screener")?;
    let mut market = MARKET.map(|(name, cents)| Symbol { name, cents, open: None });
    let pause = Duration::from_secs_f64(1.0 / rate);
    loop {
        match stop.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return Ok(()),
        }
        let chosen = pick(market.len() as u64);
        let id = write_signal(&mut connection, &mut market[chosen])?;
        if random_u64().is_multiple_of(CORRECTIONS) {
            connection
                .execute("update stock_market.signal set price = price + 0.01 where id = $1", &[&id])
                .doing("correct a signal's price")?;
        }
    }
}

fn write_signal(connection: &mut Connection, symbol: &mut Symbol) -> Result<i64, Error> {
    // Up to half a per cent up or down.
    let step = symbol.cents / 200;
    symbol.cents = symbol.cents - step + random_u64() % (2 * step + 1);
    let (action, (side, quantity, strategy)) = match symbol.open.take() {
        Some((side, quantity, strategy)) => ("exit", (if side == "BUY" { "SELL" } else { "BUY" }, quantity, strategy)),
        None => {
            let side = if random_u64().is_multiple_of(3) { "SELL" } else { "BUY" };
            let quantity = i64::try_from(1 + random_u64() % 20).unwrap_or(1) * 10;
            let position = (side, quantity, STRATEGIES[pick(STRATEGIES.len() as u64)]);
            symbol.open = Some(position);
            ("entry", position)
        }
    };
    let price = format!("{}.{:02}", symbol.cents / 100, symbol.cents % 100);
    let row = connection
        .query_one(
            "insert into stock_market.signal (symbol, action, side, quantity, price, strategy) \
             values ($1, $2, $3, $4::bigint, $5::text::numeric, $6) returning id",
            &[&symbol.name, &action, &side, &quantity, &price, &strategy],
        )
        .doing("write a signal")?;
    Ok(row.get(0))
}

fn pick(count: u64) -> usize {
    usize::try_from(random_u64() % count).unwrap_or(0)
}
