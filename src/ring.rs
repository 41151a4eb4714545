//! The connections to several coordinators as one: every call goes to the one whose turn it is, and after a call that
//! could not be made, or that a coordinator could not answer now, it is the next one's turn.
//!
//! It never makes a call again by itself: whether that is harmless is known to whoever called. So a caller that tries
//! again gets another coordinator, without knowing that there are several.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::{Channel, Error};

/// UNAVAILABLE, as it stands in a header.
const UNAVAILABLE: &[u8] = b"14";

/// See the module. Clones share whose turn it is.
#[derive(Debug, Clone)]
pub(crate) struct Ring {
    channels: Arc<[Channel]>,
    turn: Arc<AtomicUsize>,
}

impl Ring {
    /// A ring in which the first one is the first to be asked. There has to be one.
    pub(crate) fn new(channels: Vec<Channel>) -> Self {
        assert!(!channels.is_empty(), "somebody has to be asked");
        Self {
            channels: channels.into(),
            turn: Arc::default(),
        }
    }

    /// The next one's turn, unless somebody has seen to that since `place` was asked.
    fn pass(&self, place: usize) {
        let next = (place + 1) % self.channels.len();
        // An error means that it is another's turn already.
        self.turn
            .compare_exchange(place, next, Ordering::SeqCst, Ordering::SeqCst)
            .ok();
    }
}

impl Service<http::Request<Body>> for Ring {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // Each call waits for the channel that it goes to.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let ring = self.clone();
        Box::pin(async move {
            let place = ring.turn.load(Ordering::SeqCst);
            let mut channel = ring.channels[place].clone();
            let answer = match std::future::poll_fn(|context| channel.poll_ready(context)).await {
                Ok(()) => channel.call(request).await,
                Err(error) => Err(error),
            };
            let unable = answer.as_ref().map_or(true, |response| {
                let status = response.headers().get("grpc-status");
                status.is_some_and(|status| status.as_bytes() == UNAVAILABLE)
            });
            if unable {
                ring.pass(place);
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    #[tokio::test]
    async fn an_address_that_does_not_answer_loses_its_turn_once() {
        let nobody = |port: u16| Endpoint::from_shared(format!("http://127.0.0.1:{port}")).map(|e| e.connect_lazy());
        let mut ring = Ring::new(vec![nobody(1).expect("an address"), nobody(2).expect("an address")]);
        for expected in [1, 0, 1] {
            let request = http::Request::new(Body::empty());
            assert!(ring.call(request).await.is_err(), "nobody is there");
            assert_eq!(ring.turn.load(Ordering::SeqCst), expected);
        }
        // Of two calls that failed together, one passes the turn on.
        ring.pass(1);
        ring.pass(1);
        assert_eq!(ring.turn.load(Ordering::SeqCst), 0);
    }
}
