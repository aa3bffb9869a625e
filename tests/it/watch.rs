//! What a running server notices about its installation.

use crate::support::database::Database;
use crate::support::server::Server;

#[test]
fn capture_that_is_off_is_an_error_line_and_after_the_repair_a_sign_to_every_consumer() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.sql("alter table stock_market.signal disable trigger all");
    database.insert(1);
    server.wait_log(&["ERROR", "capture is off", "signal-feed migrate"]);
    database.migrate();
    let sign = stream.system("quarantined");
    assert_eq!(sign.data["error"], "capture was off");
    server.wait_log(&["capture is on again"]);
    database.insert(1);
    assert_eq!(stream.signal().prev_seq(), sign.feed_seq());
}

#[test]
fn a_cluster_that_is_not_the_recorded_one_is_a_warning_that_names_the_command() {
    let database = Database::migrated();
    database.sql("update stock_market.signal_feed_cluster set system_identifier = '1'");
    let server = Server::ready(&database, &[]);
    server.wait_log(&["WARN", "another cluster than recorded", "signal-feed restored"]);
}
