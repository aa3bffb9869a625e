//! The order that the bot sends: a stock, in US dollars, by the smart router; limit if the row has a price, else
//! market.

use ibapi::contracts::Contract;
use ibapi::orders::{Action, Order as ApiOrder};
use serde_json::value::RawValue;

use crate::consumer::order::{Order, columns};

const CURRENCY: &str = "USD";
const EXCHANGE: &str = "SMART";
const SEC_TYPE: &str = "STK";

/// `Err` says what the row asks for that the bot does not send.
pub(super) fn request(order: &Order, accounts: &[String]) -> Result<(Contract, ApiOrder), String> {
    let row = columns(&order.signal).map_err(|error| format!("read the row: {error}"))?;
    // An order names no account: it goes to the login's only one.
    let account = if let [account] = accounts { account.as_str() } else { "" };
    for (column, sent) in [("currency", CURRENCY), ("exchange", EXCHANGE), ("sec_type", SEC_TYPE), ("account", account)]
    {
        let wish = row.get(column).map_or("null", |wish| wish.get());
        let is_met = |wish: String| wish.trim().is_empty() || wish.trim().eq_ignore_ascii_case(sent);
        if !serde_json::from_str::<Option<String>>(wish).is_ok_and(|wish| wish.is_none_or(is_met)) {
            let sent = if sent.is_empty() { "none" } else { sent };
            return Err(format!("its {column} is {wish}, but the bot sends {sent}"));
        }
    }
    let quantity = number(&order.quantity).filter(|quantity| *quantity > 0.0);
    let quantity = quantity.ok_or_else(|| format!("its quantity is {}", order.quantity))?;
    let mut request = ApiOrder {
        action: if order.side == "BUY" { Action::Buy } else { Action::Sell },
        total_quantity: quantity,
        order_type: "MKT".to_owned(),
        order_ref: order.order_ref.clone(),
        transmit: true,
        ..ApiOrder::default()
    };
    if order.price.get() != "null" {
        let price = number(&order.price).filter(|price| *price > 0.0);
        request.order_type = "LMT".to_owned();
        request.limit_price = Some(price.ok_or_else(|| format!("its price is {}", order.price))?);
    }
    Ok((Contract::stock(order.symbol.trim()).on_exchange(EXCHANGE).in_currency(CURRENCY).build(), request))
}

/// A number, or a text that is one.
pub(super) fn number(raw: &RawValue) -> Option<f64> {
    let number: f64 = raw.get().trim_matches('"').parse().ok()?;
    number.is_finite().then_some(number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use super::*;

    fn asked(columns: &str) -> Result<(Contract, ApiOrder), String> {
        let row = format!(r#"{{"id":1,"action":"exit","symbol":" BRK B ","side":"SELL","quantity":"100"{columns}}}"#);
        let order = Order::from_row(&RawValue::from_string(row).unwrap(), None, None).unwrap();
        request(&order, &["DU1".to_owned()])
    }

    #[test]
    fn what_is_sent_is_what_the_row_asks_for() {
        let (contract, order) = asked(r#","price":12.5,"currency":"usd","exchange":" ","account":"DU1""#).unwrap();
        assert_eq!((contract.symbol.to_string(), order.limit_price), ("BRK B".to_owned(), Some(12.5)));
        assert_eq!((order.order_type.as_str(), order.total_quantity), ("LMT", 100.0));
        assert_eq!(asked("").unwrap().1.order_type, "MKT");
    }

    #[test]
    fn a_row_that_asks_for_something_else_is_refused_and_the_column_named() {
        for (columns, word) in [
            (r#","currency":"EUR""#, "currency"),
            (r#","exchange":"XETRA""#, "exchange"),
            (r#","sec_type":"OPT""#, "sec_type"),
            (r#","account":"DU2""#, "account"),
            (r#","account":7"#, "account"),
            (r#","price":0"#, "price is 0"),
            (r#","price":-1.5"#, "price is -1.5"),
            (r#","price":"NaN""#, "price"),
            (r#","price":1e400"#, "price"),
        ] {
            assert!(asked(columns).is_err_and(|why| why.contains(word)), "{columns}");
        }
    }
}
