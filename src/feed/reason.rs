//! Why a stream ends: one enum for the log line, the counter and the `closing` block alike.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// Its name in log lines, counters and the block `closing`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::MaxAge => "max_age",
            Self::KeyRevoked => "key_revoked",
            Self::KeyExpired => "key_expired",
            Self::Dropped => "dropped",
            Self::WriteTimeout => "write_timeout",
            Self::ClientGone => "client_gone",
            Self::Panicked => "panicked",
        }
    }

    /// Whether the client gets a last block `closing` with this cause.
    pub(crate) fn is_told(self) -> bool {
        matches!(self, Self::Shutdown | Self::MaxAge | Self::KeyRevoked | Self::KeyExpired)
    }
}
