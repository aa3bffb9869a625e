//! Locking.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a thread panicked while it held the lock: what our locks protect is whole between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
