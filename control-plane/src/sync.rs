//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic while holding one of the control plane's locks leaves plain data behind, and a control plane that
/// answers is better than one that doesn't.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
