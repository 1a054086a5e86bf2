//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks it, whatever became of a thread that held it before: what is behind such locks is never half done.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
