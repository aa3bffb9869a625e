//! Why a stream ends: one enum for the log line, the counter and the `closing` block alike.

/// As JSON it is its word in log lines, counters and the block `closing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Shutdown,
    /// The stream has lived for `--max-stream-age`.
    MaxAge,
    KeyRevoked,
    KeyExpired,
    /// It stalled while its queue overflowed; its client got `dropped`.
    Dropped,
    /// It took nothing for `--write-timeout`.
    WriteTimeout,
    /// The client closed the connection, or the connection broke.
    ClientGone,
    Panicked,
}

impl End {
    /// Every reason: each is counted from zero.
    pub(crate) const ALL: [Self; 8] = [
        Self::Shutdown,
        Self::MaxAge,
        Self::KeyRevoked,
        Self::KeyExpired,
        Self::Dropped,
        Self::WriteTimeout,
        Self::ClientGone,
        Self::Panicked,
    ];

    /// Whether the client gets a last block `closing` with this cause.
    pub(crate) fn is_told(self) -> bool {
        matches!(self, Self::Shutdown | Self::MaxAge | Self::KeyRevoked | Self::KeyExpired)
    }
}
