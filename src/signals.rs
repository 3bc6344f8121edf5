//! SIGINT, SIGTERM, SIGUSR1: the first asks for a clean end, the second ends at once. The end of standard input is one of
//! them, for a program that was started by another and asked for it.

use lockstep_proto::exit::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::failure::Failure;

/// Signals as they come.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user: Signal,
    /// Told once, when standard input ends.
    stdin: Option<oneshot::Receiver<()>>,
}

impl Signals {
    /// Starts to listen; must be called inside a runtime.
    ///
    /// # Errors
    /// When the system refuses handlers.
    pub fn listen() -> Result<Self, Failure> {
        let on = |kind| {
            signal(kind).map_err(|e| Failure::new(ExitCode::Software, format!("cannot listen for signals: {e}")))
        };
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            user: on(SignalKind::user_defined1())?,
            stdin: None,
        })
    }

    /// Counts the end of standard input as a signal too.
    pub fn and_stdin(mut self) -> Self {
        let (sender, closed) = oneshot::channel();
        // A thread that ends with the process: a read of standard input cannot be interrupted.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = sender.send(());
        });
        self.stdin = Some(closed);
        self
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.user.recv() => "SIGUSR1",
            () = closed(&mut self.stdin) => "end of standard input",
        }
    }
}

/// Returns once, when it is told; else never.
async fn closed(stdin: &mut Option<oneshot::Receiver<()>>) {
    match stdin {
        Some(receiver) => {
            let _ = receiver.await;
            *stdin = None;
        }
        None => std::future::pending().await,
    }
}
