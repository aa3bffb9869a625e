//! The gateway's lists: executions, open orders, completed orders.

use std::time::{Duration, Instant};

use ibapi::Error as ApiError;
use ibapi::client::blocking::Subscription;
use ibapi::orders::{ExecutionFilter, Executions, OrderStatusKind, Orders};
use ibapi::subscriptions::SubscriptionItem;

use super::connection::{CLIENT_ID, GatewayConnection, SLICE, is_end};
use crate::consumer::stop::Stop;

/// One order in one list.
#[derive(Debug)]
struct Row {
    reference: String,
    order_id: i64,
    client_id: i32,
    /// None in the list of executions.
    status: Option<OrderStatusKind>,
    filled: f64,
    reason: String,
}

#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// It is open, under this number.
    Open(Option<i64>),
    /// This much of it was executed, under this number; it is not open.
    Executed(Option<i64>, f64),
    /// It ended without a fill.
    Dead(String),
    Nothing,
}

#[derive(Debug, Default)]
pub(super) struct Lists {
    rows: Vec<Row>,
    /// Why the bot's own open orders or executions are not all here.
    pub(super) gap: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// This client's executions and open orders: enough to see that an order works.
    Own,
    /// Completed orders and the orders of all clients too: enough to prove that an order is not there.
    All,
}

impl Lists {
    fn note_gap(&mut self, name: &str, cut: Option<String>) {
        if let Some(why) = cut {
            self.gap = Some(format!("the gateway's list of the bot's own {name} cannot be read: {why}"));
        }
    }

    fn take_execution(&mut self, execution: Executions) {
        if let Executions::ExecutionData(data) = execution {
            let execution = data.execution;
            self.rows.push(Row {
                reference: execution.order_reference,
                order_id: i64::from(execution.order_id),
                client_id: execution.client_id,
                status: None,
                filled: execution.cumulative_quantity.max(execution.shares),
                reason: String::new(),
            });
        }
    }

    fn take_order(&mut self, order: Orders) {
        match order {
            Orders::OrderData(data) => {
                // A completed order contains its number.
                let order_id = if data.order_id > 0 { data.order_id } else { data.order.order_id };
                let state = data.order_state;
                let reasons = [state.reject_reason, state.warning_text, state.completed_status];
                self.rows.push(Row {
                    reference: data.order.order_ref,
                    order_id: i64::from(order_id),
                    client_id: data.order.client_id,
                    status: Some(state.status),
                    filled: data.order.filled_quantity,
                    reason: reasons.into_iter().find(|reason| !reason.is_empty()).unwrap_or_default(),
                });
            }
            Orders::OrderStatus(status) => {
                let order_id = i64::from(status.order_id);
                let is_it = |row: &&mut Row| row.order_id == order_id && row.client_id == status.client_id;
                for row in self.rows.iter_mut().filter(|row| row.status.is_some()).filter(is_it) {
                    row.status = Some(status.status.clone());
                    row.filled = row.filled.max(status.filled);
                }
            }
        }
    }

    /// The state of the order with this reference. An earlier attempt that ended does not count as the attempt
    /// `order_id`. A row without a number counts as this attempt.
    pub(super) fn find(&self, reference: &str, order_id: Option<i64>) -> Found {
        let rows = || self.rows.iter().filter(|row| row.reference == reference);
        let number = |row: &Row| Some(row.order_id).filter(|number| *number > 0).or(order_id);
        let is_open = |row: &&Row| row.status.as_ref().is_some_and(|status| !status.is_terminal());
        if let Some(row) = rows().find(is_open) {
            return Found::Open(number(row));
        }
        let is_filled = |row: &&Row| row.filled > 0.0 || row.status == Some(OrderStatusKind::Filled);
        if let Some(row) = rows().filter(is_filled).max_by(|one, other| one.filled.total_cmp(&other.filled)) {
            let whole = rows().any(|row| row.status == Some(OrderStatusKind::Filled));
            return Found::Executed(number(row), if whole { f64::INFINITY } else { row.filled });
        }
        let is_it = |row: &&Row| row.order_id <= 0 || order_id.is_none_or(|order_id| row.order_id == order_id);
        match rows().find(is_it) {
            Some(row) => {
                let status = row.status.as_ref().map_or("", OrderStatusKind::as_str);
                let reason = if row.reason.is_empty() { String::new() } else { format!(", {}", row.reason) };
                Found::Dead(format!("{status}, nothing was filled{reason}"))
            }
            None => Found::Nothing,
        }
    }
}

pub(super) struct ListReader<'a> {
    pub(super) connection: &'a mut GatewayConnection,
    pub(super) deadline: Instant,
    pub(super) stop: &'a Stop,
}

impl ListReader<'_> {
    /// Requests one list at a time: two at once would mix their answers.
    ///
    /// If another client's row cannot be read, only the lists of all clients end. What they may hide of the bot's
    /// orders is neither open nor executed, as the bot's own lists show.
    pub(super) fn read(mut self, scope: Scope) -> Result<Lists, String> {
        let mut lists = Lists::default();
        let own = ExecutionFilter { client_id: Some(CLIENT_ID), ..ExecutionFilter::default() };
        let executions = self.connection.client.executions(own);
        let next = executions.map(|list| move |patience| list.next_timeout(patience));
        let cut = self.all("executions", next, |execution| lists.take_execution(execution))?;
        lists.note_gap("executions", cut);
        // The rest of a list that was cut short may still arrive and would end this one, so it is requested twice.
        for _ in 0..=usize::from(std::mem::take(&mut self.connection.has_cut_list)) {
            let open = self.connection.client.open_orders();
            let cut = self.orders("open orders", open, &mut lists)?;
            lists.note_gap("open orders", cut);
            if lists.gap.is_some() {
                break;
            }
        }
        if scope == Scope::All {
            let completed = self.connection.client.completed_orders(false);
            self.orders("completed orders", completed, &mut lists)?;
            let open = self.connection.client.all_open_orders();
            self.orders("open orders of all clients", open, &mut lists)?;
        }
        Ok(lists)
    }

    fn orders(
        &mut self,
        name: &str,
        asked: Result<Subscription<Orders>, ApiError>,
        lists: &mut Lists,
    ) -> Result<Option<String>, String> {
        let next = asked.map(|list| move |patience| list.next_timeout(patience));
        self.all(name, next, |order| lists.take_order(order))
    }

    /// Reads a list to its end, or to a row that cannot be read: then the rest cannot be read either, and it says why.
    /// `Err` if the gateway does not send it.
    fn all<T>(
        &mut self,
        name: &str,
        asked: Result<impl Fn(Duration) -> Option<Result<SubscriptionItem<T>, ApiError>>, ApiError>,
        mut take: impl FnMut(T),
    ) -> Result<Option<String>, String> {
        let next = asked.map_err(|error| format!("ask for {name}: {error}"))?;
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stop.is_asked() {
                self.connection.has_late_list = true;
                return Err(format!("the gateway did not answer when asked for {name}"));
            }
            let (slice, asked_at) = (left.min(SLICE), Instant::now());
            match next(slice) {
                Some(Ok(SubscriptionItem::Data(row))) => take(row),
                Some(Ok(SubscriptionItem::Notice(notice))) => log::info!("the gateway says about {name}: {notice}"),
                Some(Err(error)) if is_end(&error) => return Err(format!("ask for {name}: {error}")),
                Some(Err(ApiError::Notice(notice))) => return Err(format!("ask for {name}: {notice}")),
                Some(Err(error)) => {
                    self.connection.has_cut_list = true;
                    return Ok(Some(error.to_string()));
                }
                // No further row in time: the list or the connection has ended.
                None if asked_at.elapsed() < slice => {
                    return if self.connection.is_lost() {
                        Err("the connection was lost".to_owned())
                    } else {
                        Ok(None)
                    };
                }
                None => {
                    self.connection.take_notices();
                    if let Some(trouble) = &self.connection.trouble {
                        self.connection.has_late_list = true;
                        return Err(trouble.text.clone());
                    }
                }
            }
        }
    }
}
