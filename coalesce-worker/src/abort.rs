//! A flag that ends work, and wakes whoever sleeps meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

/// How long work that was told to end may take to stop before the process ends without waiting for it, as when a disk does
/// not answer. That loses nothing but what was moved since the last checkpoint.
pub(crate) const PATIENCE: Duration = Duration::from_millis(150);

/// The work was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("aborted")]
pub struct Aborted;

/// A flag that, once raised, stays so. Clones are the same flag.
///
/// # Lock order
/// Wakers are called, and children aborted, while no lock of the flag is held: whoever is woken may take locks of its own,
/// and may hold them while it registers.
#[derive(Clone, Debug, Default)]
pub struct Abort {
    flag: Arc<Flag>,
}

#[derive(Debug, Default)]
struct Flag {
    raised: AtomicBool,
    listeners: Mutex<Listeners>,
    /// Goes with `listeners`; for those who sleep for nothing but the abort.
    raising: Condvar,
}

#[derive(Debug, Default)]
struct Listeners {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
    children: Vec<Weak<Flag>>,
}

impl Abort {
    /// Makes a flag of its own that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a flag that is raised with this one, or alone.
    pub fn child(&self) -> Self {
        let child = Self::new();
        {
            let mut listeners = self.flag.listeners();
            listeners.children.retain(|child| child.strong_count() > 0);
            listeners.children.push(Arc::downgrade(&child.flag));
        }
        // Whoever raises this flag from now on finds the child; whoever did it before may not have.
        if self.is_aborted() {
            child.abort();
        }
        child
    }

    /// Raises the flag and those of all children, and wakes all who sleep.
    pub fn abort(&self) {
        self.flag.raise();
    }

    /// Tells whether it is raised.
    pub fn is_aborted(&self) -> bool {
        self.flag.raised.load(Ordering::SeqCst)
    }

    /// Goes on only while it is not raised.
    ///
    /// # Errors
    /// [`Aborted`] once it is.
    pub fn check(&self) -> Result<(), Aborted> {
        if self.is_aborted() { Err(Aborted) } else { Ok(()) }
    }

    /// Sleeps, until it is raised at most.
    ///
    /// # Errors
    /// [`Aborted`] once it is.
    pub fn sleep(&self, duration: Duration) -> Result<(), Aborted> {
        let listeners = self.flag.listeners();
        let slept = self.flag.raising.wait_timeout_while(listeners, duration, |_| !self.is_aborted());
        drop(slept);
        self.check()
    }

    /// Has `waker` called when the flag is raised, as long as the answer lives. Whoever sleeps looks at the flag after
    /// this and before it falls asleep.
    pub fn wakes(&self, waker: &Waker) -> WakeGuard<'_> {
        let mut listeners = self.flag.listeners();
        let key = listeners.next;
        listeners.next += 1;
        listeners.wakers.insert(key, waker.clone());
        WakeGuard { flag: &self.flag, key }
    }
}

impl Flag {
    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        let (wakers, children) = {
            let mut listeners = self.listeners();
            self.raising.notify_all();
            (listeners.wakers.values().cloned().collect::<Vec<_>>(), std::mem::take(&mut listeners.children))
        };
        for waker in wakers {
            waker.wake();
        }
        for child in children.iter().filter_map(Weak::upgrade) {
            child.raise();
        }
    }
}

/// Somebody who is to be woken; no longer once this is dropped.
#[derive(Debug)]
pub struct WakeGuard<'a> {
    flag: &'a Flag,
    key: u64,
}

impl Drop for WakeGuard<'_> {
    fn drop(&mut self) {
        self.flag.listeners().wakers.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_child_ends_with_its_parent_or_alone() {
        let parent = Abort::new();
        let (one, two) = (parent.child(), parent.child());
        let grandchild = two.child();
        one.abort();
        assert!(one.is_aborted() && !parent.is_aborted() && !two.is_aborted());
        parent.clone().abort();
        assert!(parent.is_aborted() && two.is_aborted() && grandchild.is_aborted());
        assert!(two.child().is_aborted(), "a child of what is aborted");
        assert_eq!(grandchild.check(), Err(Aborted));
    }

    #[test]
    fn children_that_are_gone_are_forgotten() {
        let parent = Abort::new();
        for _ in 0..100 {
            parent.child();
        }
        assert!(parent.flag.listeners().children.len() <= 1);
    }

    #[test]
    fn a_sleeper_wakes_at_once() {
        let parent = Abort::new();
        let child = parent.child();
        let sleeper = thread::spawn(move || {
            let slept = child.sleep(Duration::from_secs(60));
            (slept, Instant::now())
        });
        thread::sleep(Duration::from_millis(20));
        let told = Instant::now();
        parent.abort();
        let (slept, woken) = sleeper.join().unwrap();
        assert_eq!(slept, Err(Aborted));
        assert!(woken - told < Duration::from_millis(50), "woken after {:?}", woken - told);
    }

    #[test]
    fn a_sleep_that_nobody_ends_takes_its_time() {
        let start = Instant::now();
        assert_eq!(Abort::new().sleep(Duration::from_millis(20)), Ok(()));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_waker_is_called_only_while_its_guard_lives() {
        struct Called(AtomicBool);
        impl Wake for Called {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        for kept in [true, false] {
            let abort = Abort::new();
            let called = Arc::new(Called(AtomicBool::new(false)));
            let waker = Waker::from(Arc::clone(&called));
            let guard = abort.wakes(&waker);
            let _guard = kept.then_some(guard);
            abort.abort();
            assert_eq!(called.0.load(Ordering::SeqCst), kept);
        }
    }
}
