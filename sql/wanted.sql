-- What an installation consists of. It replaces {wanted} in other files, which create it or compare it with the database.
with wanted_role (role, owns_objects) as (values
    ('signal_feed_owner', true), ('signal_feed_capture', true), ('signal_feed_render', true), ('signal_feed_signal', true),
    ('signal_feed_server', false), ('signal_feed_admin', false), ('signal_feed_bot', false)
), wanted_usage (schema, roles) as (values
    ('stock_market', array['signal_feed_owner', 'signal_feed_capture', 'signal_feed_signal', 'signal_feed_server',
        'signal_feed_admin', 'signal_feed_bot']),
    ('signal_feed_private', array['signal_feed_owner', 'signal_feed_capture', 'signal_feed_server', 'signal_feed_admin'])
), wanted_relation (schema, name, kind, comment) as (values
    ('stock_market', 'signal_feed_migration', 'r', 'Which of the numbered schema files were applied'),
    ('stock_market', 'signal_feed_identity', 'r', 'One row: which log this is'),
    ('stock_market', 'signal_feed_counter', 'r', 'One row: the last feed_seq given to an event'),
    ('stock_market', 'signal_feed_pruned', 'r', 'One row: up to which number the log was pruned'),
    ('stock_market', 'signal_feed_skipped', 'r',
        'Numbers that no event will ever have, because events that a restore lost may have had them (signal-feed restored)'),
    ('stock_market', 'signal_feed_cluster', 'r',
        'One row: the PostgreSQL cluster, timeline and database that the log lives in; others mean a restore or a failover'),
    ('stock_market', 'signal_feed_choice', 'r', 'One row: what the operator chose'),
    ('stock_market', 'signal_feed_api_key', 'r', 'Who may read the feed. The keys themselves are stored nowhere'),
    ('stock_market', 'signal_feed_api_key_id_seq', 'S', 'Numbers the rows of signal_feed_api_key'),
    ('stock_market', 'signal_feed_quarantine', 'r', 'Events that cannot be delivered to anybody, and why'),
    ('stock_market', 'signal_feed_event', 'r',
        'The log: every INSERT and every meaningful UPDATE of signal, in commit order, without a hole. Nothing in it changes'),
    ('signal_feed_private', 'signal_feed_session_secret', 'r', 'One row: the secret that signs session cookies'),
    ('signal_feed_private', 'signal_feed_lock', 'v',
        'The transaction that numbers its events holds a lock on this view until it has committed. A view, because no maintenance command locks one'),
    ('signal_feed_private', 'signal_feed_outbox', 'r',
        'Events of open transactions, except the first of each. A commit moves them to the log, so no committed row is ever left here'),
    ('signal_feed_private', 'signal_feed_outbox_seq_seq', 'S', 'The order of the writes within a transaction'),
    ('signal_feed_private', 'signal_feed_first', 'r',
        'The first event of each open transaction. Its deferred triggers remove it at commit, and number it with the others of its round')
), wanted_grant (schema, name, privilege, columns, roles) as (values
    ('stock_market', 'signal_feed_migration', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin']),
    ('stock_market', 'signal_feed_choice', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin']),
    ('stock_market', 'signal_feed_cluster', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin']),
    ('stock_market', 'signal_feed_identity', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin', 'signal_feed_bot']),
    ('stock_market', 'signal_feed_counter', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin', 'signal_feed_bot']),
    ('stock_market', 'signal_feed_pruned', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin', 'signal_feed_bot']),
    ('stock_market', 'signal_feed_skipped', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin', 'signal_feed_bot']),
    ('stock_market', 'signal_feed_api_key', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin']),
    ('stock_market', 'signal_feed_api_key', 'UPDATE', 'last_used_at', array['signal_feed_server']),
    ('stock_market', 'signal_feed_api_key', 'INSERT', '', array['signal_feed_admin']),
    -- UPDATE also allows the lock under which mint checks whether a name is taken.
    ('stock_market', 'signal_feed_api_key', 'UPDATE', '', array['signal_feed_admin']),
    ('stock_market', 'signal_feed_quarantine', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin']),
    ('stock_market', 'signal_feed_quarantine', 'INSERT', '', array['signal_feed_server']),
    ('stock_market', 'signal_feed_quarantine', 'UPDATE', 'settled_at', array['signal_feed_admin']),
    ('stock_market', 'signal_feed_event', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin', 'signal_feed_bot']),
    -- A trigger refuses every row above pruned_through.
    ('stock_market', 'signal_feed_event', 'DELETE', '', array['signal_feed_admin']),
    ('signal_feed_private', 'signal_feed_session_secret', 'SELECT', '', array['signal_feed_server']),
    ('signal_feed_private', 'signal_feed_outbox', 'INSERT', '', array['signal_feed_capture']),
    -- To check that no committed row is left there.
    ('signal_feed_private', 'signal_feed_outbox', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin']),
    ('signal_feed_private', 'signal_feed_first', 'SELECT', '', array['signal_feed_server', 'signal_feed_admin']),
    ('signal_feed_private', 'signal_feed_first', 'INSERT', '', array['signal_feed_capture']),
    ('signal_feed_private', 'signal_feed_first', 'SELECT', 'round', array['signal_feed_capture']),
    ('signal_feed_private', 'signal_feed_first', 'SELECT', 'xact', array['signal_feed_capture']),
    ('signal_feed_private', 'signal_feed_outbox_seq_seq', 'USAGE', '', array['signal_feed_capture'])
), wanted_function (signature, owner, may_execute) as (values
    ('signal_feed_render(record, record)', 'signal_feed_render', array['signal_feed_capture']),
    ('signal_feed_render_pinned(record, record)', 'signal_feed_capture', '{}'),
    ('signal_feed_capture()', 'signal_feed_capture', '{}'),
    ('signal_feed_gather()', 'signal_feed_owner', '{}'),
    ('signal_feed_number()', 'signal_feed_owner', '{}'),
    ('signal_feed_refuse()', 'signal_feed_owner', '{}'),
    ('signal_feed_touch()', 'signal_feed_owner', '{}'),
    ('signal_feed_key_changed()', 'signal_feed_owner', '{}'),
    ('signal_feed_cluster_now()', 'signal_feed_owner', array['signal_feed_server', 'signal_feed_admin']),
    ('signal_feed_wal_receiver()', 'signal_feed_owner', array['signal_feed_server', 'signal_feed_admin']),
    ('signal_feed_prune_to(bigint)', 'signal_feed_owner', array['signal_feed_admin']),
    ('signal_feed_nothing_lost()', 'signal_feed_owner', array['signal_feed_admin']),
    ('signal_feed_restored(bigint)', 'signal_feed_owner', array['signal_feed_admin'])
-- guards: capture (without it signals do not reach the log), log or keys.
-- kind: the bits of pg_trigger.tgtype: 1 row, 2 before, 4 insert, 8 delete, 16 update, 32 truncate.
), wanted_trigger (guards, schema, tab, name, kind, deferred, of_columns, function, events, comment) as (values
    -- Its name sorts first: a row's INSERT comes before the UPDATE that another AFTER trigger makes. It is a constraint
    -- trigger because CREATE OR REPLACE TRIGGER cannot replace one, and needs only the right TRIGGER on signal.
    ('capture', 'stock_market', 'signal', '!signal_feed_capture', 21, false, false, 'signal_feed_capture',
        'after insert or update',
        'Appends to the log at commit; it has to fire before other AFTER triggers, hence the name'),
    ('capture', 'signal_feed_private', 'signal_feed_first', 'signal_feed_gather', 21, true, true, 'signal_feed_gather',
        'after insert or update of round',
        'The first round: it fires among the deferred constraints of the transaction''s statements'),
    ('capture', 'signal_feed_private', 'signal_feed_first', 'signal_feed_number', 9, true, false, 'signal_feed_number',
        'after delete', 'The second round: it fires after all of them'),
    ('log', 'stock_market', 'signal_feed_event', 'signal_feed_refuse_row', 27, false, false, 'signal_feed_refuse',
        'before update or delete', 'The log is append-only'),
    ('log', 'stock_market', 'signal_feed_event', 'signal_feed_refuse_statement', 50, false, false, 'signal_feed_refuse',
        'before update or truncate', 'The log is append-only'),
    -- Not for an update of last_used_at alone, which the server makes.
    ('keys', 'stock_market', 'signal_feed_api_key', 'signal_feed_key_changed', 60, false, true, 'signal_feed_key_changed',
        'after insert or delete or truncate or update of id, name, key_sha256, created_at, expires_at, revoked_at, delay',
        'Notifies channel signal_feed_key, so that a change of a key counts at once')
)
