//! Counting what happened lately.
