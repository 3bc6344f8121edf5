//! SIGTERM, SIGINT and SIGUSR1 ask a worker to leave politely.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::run::Signal;

/// Sends each signal's name; lives as long as the runtime.
///
/// # Errors
/// The system refuses a handler.
pub fn listen() -> std::io::Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(8);
    for (kind, name) in [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
        (SignalKind::user_defined1(), "SIGUSR1"),
    ] {
        let mut stream = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(Signal(name)).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}
