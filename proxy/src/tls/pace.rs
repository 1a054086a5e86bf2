//! Bounds the handshake work of one turn of a worker's runtime, so that five hundred callers that
//! come back at once do not stand in the way of requests.
//!
//! A handshake's step costs up to a millisecond where a request's costs some tens of microseconds.
//! What is bounded is work, never how many handshakes are open: a caller that does not go on takes
//! nobody's place.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Steps per turn. With a full handshake's costliest step at half a millisecond, requests wait two
/// milliseconds at most before their turn comes.
const STEPS: u32 = 4;

#[derive(Default)]
pub struct Pace {
    used: Cell<u32>,
    waiting: RefCell<VecDeque<Waker>>,
    turning: Cell<bool>,
}

impl Pace {
    /// Runs a handshake, each of its steps within the bound.
    pub async fn run<F: Future>(self: &Rc<Self>, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        poll_fn(|cx| {
            if !self.step(cx.waker()) {
                return Poll::Pending;
            }
            handshake.as_mut().poll(cx)
        })
        .await
    }

    /// Takes a step of this turn, or asks to be woken in a later one.
    fn step(self: &Rc<Self>, waker: &Waker) -> bool {
        if !self.turning.replace(true) {
            tokio::task::spawn_local(Rc::clone(self).turn());
        }
        if self.used.get() < STEPS {
            self.used.set(self.used.get() + 1);
            return true;
        }
        self.waiting.borrow_mut().push_back(waker.clone());
        false
    }

    /// Begins new turns until one passes in which no step was taken and nobody waits.
    async fn turn(self: Rc<Self>) {
        loop {
            // Returns after everything that was ready, and what has become readable meanwhile.
            tokio::task::yield_now().await;
            // Anyone who was woken last may have gone since: then others still wait.
            if self.used.replace(0) == 0 && self.waiting.borrow().is_empty() {
                self.turning.set(false);
                return;
            }
            for _ in 0..STEPS {
                let next = self.waiting.borrow_mut().pop_front();
                let Some(waker) = next else { break };
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, LocalOptions};

    use super::*;

    #[test]
    fn requests_get_their_turn_between_handshakes() {
        let runtime = Builder::new_current_thread().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let pace = Rc::new(Pace::default());
            let (done, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            for _ in 0..100 {
                let (pace, done) = (Rc::clone(&pace), Rc::clone(&done));
                tokio::task::spawn_local(async move {
                    pace.run(async {}).await;
                    done.set(done.get() + 1);
                });
            }
            while done.get() < 100 {
                let before = done.get();
                tokio::task::yield_now().await;
                most.set(most.get().max(done.get() - before));
            }
            assert!(most.get() <= 2 * STEPS, "{} handshakes in one turn", most.get());
        });
    }
}
