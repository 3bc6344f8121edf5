//! SIGTERM, SIGINT and SIGUSR1 ask a worker to leave politely; the end of standard input says that whoever started it is
//! gone.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

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

/// Waits until standard input ends; for ever when nobody `asked`.
pub async fn stdin_closes(asked: bool) {
    if !asked {
        return std::future::pending().await;
    }
    let (sender, closed) = oneshot::channel();
    // A thread that ends with the process: a read of standard input cannot be interrupted.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = sender.send(());
    });
    let _ = closed.await;
}
