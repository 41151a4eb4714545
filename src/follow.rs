//! Follows a run until it is at rest: shows its progress, survives a lost connection, and knows what Ctrl-C means.
//!
//! It asks the coordinator and changes nothing, but for one thing: the first Ctrl-C of `haulage run` cancels the run.

use std::time::Duration;

use anyhow::{Result, anyhow};
use haulage_proto::v1::{Run, RunState, WatchRequest, WatchResponse};
use tonic::{Code, Status, Streaming};

use crate::api::{self, Client};
use crate::clock;
use crate::output::{Output, note};
use crate::progress::Progress;
use crate::signals::{Signal, Signals};

/// A coordinator that restarts is back within this; a run goes on in any case.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Rates and elapsed time move also while nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// What the first Ctrl-C means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnSignal {
    /// The run is this process's: cancel it, and wait until it is rolled back. The second one leaves at once.
    Cancel,
    /// The run is the cluster's: stop watching, and leave the run alone.
    Leave,
}

/// Why following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The run is at rest.
    AtRest,
    /// The run waits for an operator.
    Stuck,
    /// The user left; the run is not at rest.
    Left,
}

/// The run as it was last seen.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    /// As the coordinator described it; `None` if the user left before it said anything.
    pub(crate) run: Option<Run>,
    /// Why following ended.
    pub(crate) ended: Ended,
    /// Whether the user sent a signal meanwhile.
    pub(crate) interrupted: bool,
}

/// Follows `run_id` until it is at rest or the user leaves. Errors: there is no such run, or the coordinator is gone.
pub(crate) async fn follow(
    client: &Client,
    run_id: &str,
    on_signal: OnSignal,
    signals: &mut Signals,
    output: Output,
) -> Result<Followed> {
    follow_from(client, run_id, 0, on_signal, signals, output).await
}

/// The same after something that was asked of the run: where its log was shorter than `asked`, it had not heard yet, and
/// an end that it had come to then is none any more.
pub(crate) async fn follow_from(
    client: &Client,
    run_id: &str,
    asked: u64,
    on_signal: OnSignal,
    signals: &mut Signals,
    output: Output,
) -> Result<Followed> {
    let mut follower = Follower {
        client: client.clone(),
        run_id,
        on_signal,
        progress: Progress::new(output, clock::instant()),
        run: None,
        asked,
        seen: 0,
        interrupted: false,
    };
    let ended = follower.until_rest(signals).await;
    follower.progress.finish();
    Ok(Followed {
        ended: ended?,
        interrupted: follower.interrupted,
        run: follower.run,
    })
}

struct Follower<'a> {
    client: Client,
    run_id: &'a str,
    on_signal: OnSignal,
    progress: Progress,
    run: Option<Run>,
    asked: u64,
    /// The place of the last event that was shown.
    seen: u64,
    interrupted: bool,
}

/// What one connection came to.
enum Connection {
    Ended(Ended),
    /// It broke; `heard` says whether it had brought anything.
    Lost {
        status: Option<Status>,
        heard: bool,
    },
}

impl Follower<'_> {
    async fn until_rest(&mut self, signals: &mut Signals) -> Result<Ended> {
        let mut lost_at = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let (status, heard) = match self.connection(signals).await? {
                Connection::Ended(ended) => return Ok(ended),
                Connection::Lost { status, heard } => (status, heard),
            };
            if heard {
                (lost_at, pause) = (None, FIRST_PAUSE);
            }
            let since = *lost_at.get_or_insert_with(|| {
                let why = status
                    .as_ref()
                    .map_or_else(|| "it ended early".to_owned(), |s| api::explain(s).to_string());
                note(format!("lost sight of the run ({why}); trying again"));
                clock::instant()
            });
            if clock::instant().saturating_duration_since(since) > PATIENCE {
                let why = status.map_or_else(
                    || anyhow!("the coordinator ends every watch early"),
                    |s| api::explain(&s),
                );
                return Err(why.context(format!(
                    "gave up watching after {} s; the run itself is not affected: haulage watch {}",
                    PATIENCE.as_secs(),
                    self.run_id
                )));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                signal = signals.next() => {
                    if let Some(ended) = self.signal(signal, signals).await {
                        return Ok(ended);
                    }
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn connection(&mut self, signals: &mut Signals) -> Result<Connection> {
        let request = WatchRequest {
            run_id: self.run_id.to_owned(),
            after_seq: self.seen,
        };
        let mut client = self.client.clone();
        let opened = tokio::select! {
            opened = client.watch(request) => opened,
            signal = signals.next() => {
                return Ok(match self.signal(signal, signals).await {
                    Some(ended) => Connection::Ended(ended),
                    None => Connection::Lost { status: None, heard: true },
                });
            }
        };
        let mut stream = match opened {
            Ok(response) => response.into_inner(),
            Err(status) if api::may_pass(&status) => {
                return Ok(Connection::Lost {
                    status: Some(status),
                    heard: false,
                });
            }
            Err(status) => return Err(api::explain(&status)),
        };
        self.listen(&mut stream, signals).await
    }

    async fn listen(&mut self, stream: &mut Streaming<WatchResponse>, signals: &mut Signals) -> Result<Connection> {
        let mut tick = tokio::time::interval(TICK);
        let mut heard = false;
        loop {
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(message)) => {
                        heard = true;
                        if let Some(ended) = self.take(message)? {
                            return Ok(Connection::Ended(ended));
                        }
                    }
                    Ok(None) => {
                        return Ok(match self.run.as_ref().filter(|run| run.seq >= self.asked).and_then(ended) {
                            Some(ended) => Connection::Ended(ended),
                            None => Connection::Lost { status: None, heard },
                        });
                    }
                    Err(status) if api::may_pass(&status) => {
                        return Ok(Connection::Lost { status: Some(status), heard });
                    }
                    Err(status) => return Err(api::explain(&status)),
                },
                signal = signals.next() => {
                    if let Some(ended) = self.signal(signal, signals).await {
                        return Ok(Connection::Ended(ended));
                    }
                }
                _ = tick.tick() => {
                    if let Some(run) = &self.run {
                        self.progress.update(run, &[], clock::instant())?;
                    }
                }
            }
        }
    }

    fn take(&mut self, message: WatchResponse) -> Result<Option<Ended>> {
        let Some(run) = message.run else { return Ok(None) };
        self.progress.update(&run, &message.events, clock::instant())?;
        if let Some(last) = message.events.last() {
            self.seen = self.seen.max(last.seq);
        }
        // Many events come in several messages around the same run: the end is with the last of them.
        let ended = if self.seen >= run.seq.max(self.asked) {
            ended(&run)
        } else {
            None
        };
        self.run = Some(run);
        Ok(ended)
    }

    /// `Some` if following ends with this signal.
    async fn signal(&mut self, signal: Signal, signals: &mut Signals) -> Option<Ended> {
        if self.on_signal == OnSignal::Leave || self.interrupted {
            self.interrupted = true;
            return Some(Ended::Left);
        }
        self.interrupted = true;
        note(format!(
            "{}: cancelling the run and undoing what it has started; once more to leave at once (the next `haulage run` \
             of it finishes the undoing, and runs it anew)",
            signal.name()
        ));
        let reason = format!("{} by the user", signal.name());
        tokio::select! {
            answer = api::cancel(&self.client, self.run_id, &reason) => {
                if let Err(status) = answer {
                    match status.code() {
                        Code::FailedPrecondition => note(format!("{}; waiting for its end", status.message())),
                        _ => note(format!("could not cancel: {}", api::explain(&status))),
                    }
                }
                None
            }
            _ = signals.next() => Some(Ended::Left),
        }
    }
}

/// Whether there is nothing more to see.
fn ended(run: &Run) -> Option<Ended> {
    match run.state() {
        RunState::Published | RunState::Failed | RunState::Cancelled | RunState::Reverted => Some(Ended::AtRest),
        RunState::Stuck => Some(Ended::Stuck),
        RunState::Unspecified
        | RunState::Discovering
        | RunState::Loading
        | RunState::Verifying
        | RunState::Publishing
        | RunState::RollingBack
        | RunState::Reverting => None,
    }
}
