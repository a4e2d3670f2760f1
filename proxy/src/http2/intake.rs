//! Requests in the order in which they came. `h2` reads on whenever it is asked for the next one,
//! and keeps what it has read: here all of them are taken out, accounted for and judged, before
//! more is read. So no more of them wait than one turn reads.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use h2::server::{Connection, SendResponse};
use h2::{Error, RecvStream};
use http::Request;

use super::heads::Fault;
use super::inlet::Faults;
use super::io::SharedStream;
use super::piece::Piece;

type Accepted = Option<Result<(Request<RecvStream>, SendResponse<Piece>), Error>>;

/// Of one client's connection.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// A request was taken out: there may be more.
    more: Cell<bool>,
    holds_back: Cell<bool>,
    /// Heads that `h2` is not shown, until their requests are taken out.
    faults: Faults,
}

impl Intake {
    /// Whether nothing is read now.
    pub(super) fn holds_back(&self) -> bool {
        self.holds_back.get()
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What is wrong with the head of a request that was taken out.
    pub(super) fn fault(&self, stream: u32) -> Option<Fault> {
        let mut faults = self.faults.borrow_mut();
        // Of those before it `h2` has refused the streams for reasons of its own.
        while faults.front().is_some_and(|fault| fault.stream < stream) {
            faults.pop_front();
        }
        faults.pop_front_if(|fault| fault.stream == stream)
    }

    /// The next request; None when the connection has ended.
    pub(super) async fn next(&self, server: &mut Connection<SharedStream, Piece>) -> Accepted {
        poll_fn(|context| {
            if self.more.get() {
                self.holds_back.set(true);
                let accepted = pin!(server.accept()).poll(context);
                self.holds_back.set(false);
                if accepted.is_ready() {
                    return accepted;
                }
            }
            let accepted = pin!(server.accept()).poll(context);
            self.more.set(matches!(accepted, Poll::Ready(Some(Ok(_)))));
            accepted
        })
        .await
    }
}
