//! A single poll of a future, without waiting for it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// The output of a future that is ready immediately; `None` if it waits for something.
pub(crate) fn now_or_never<T>(future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
