//! A TCP proxy between a worker and its coordinator: delay, loss in one direction, a cut.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// What happens to bytes under way.
#[derive(Debug, Default)]
struct Weather {
    delay_ms: AtomicU64,
    /// To the coordinator, and from it: lost. TCP would say it again until it arrives, so it arrives when this ends.
    loses: [AtomicBool; 2],
    /// All connections end.
    is_cut: AtomicBool,
    is_over: AtomicBool,
}

impl Weather {
    fn ends(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed) || self.is_over.load(Ordering::Relaxed)
    }
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: Arc<Weather>,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the worker to the coordinator.
    Up,
    /// From the coordinator to the worker.
    Down,
}

impl Proxy {
    /// In front of an address.
    pub fn start(target: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let weather = Arc::new(Weather::default());
        let (ours, target) = (Arc::clone(&weather), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ours.is_over.load(Ordering::Relaxed) {
                    return;
                }
                // A refusal reaches the client as the end of its connection.
                if let Ok(server) = TcpStream::connect(&target) {
                    let _ = connect(&client, &server, &ours);
                }
            }
        });
        Ok(Self { address, weather })
    }

    /// What the worker is to be told.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything arrives so much later.
    pub fn delay(&self, delay: Duration) {
        self.weather.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Loses what goes one way, without a word to the sender.
    pub fn lose(&self, way: Way, is_so: bool) {
        self.weather.loses[usize::from(way == Way::Down)].store(is_so, Ordering::Relaxed);
    }

    /// Ends all connections; new ones end at once until it is put together again.
    pub fn cut(&self, is_cut: bool) {
        self.weather.is_cut.store(is_cut, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.weather.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address); // wakes the listener
    }
}

fn connect(client: &TcpStream, server: &TcpStream, weather: &Arc<Weather>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ways = [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)];
    for ((from, to), way) in ways.into_iter().zip([0, 1]) {
        let weather = Arc::clone(weather);
        thread::spawn(move || carry(from, to, &weather, way));
    }
    Ok(())
}

/// Reads at once and writes after the delay, so that a delay is no limit on the rate.
fn carry(mut from: TcpStream, mut to: TcpStream, weather: &Arc<Weather>, way: usize) {
    let (sender, due) = mpsc::channel::<(Instant, Vec<u8>)>();
    let Ok(ends) = to.try_clone() else { return };
    let sky = Arc::clone(weather);
    let writer = thread::spawn(move || {
        for (at, bytes) in due {
            thread::sleep(at.saturating_duration_since(Instant::now())); // this is the delay
            while sky.loses[way].load(Ordering::Relaxed) && !sky.ends() {
                thread::sleep(Duration::from_millis(2)); // and this the loss
            }
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = from.set_read_timeout(Some(Duration::from_millis(20)));
    let mut buffer = vec![0; 1 << 16];
    loop {
        if weather.ends() {
            let _ = from.shutdown(Shutdown::Both);
            let _ = ends.shutdown(Shutdown::Both);
            break;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                let at = Instant::now() + Duration::from_millis(weather.delay_ms.load(Ordering::Relaxed));
                if sender.send((at, buffer[..read].to_vec())).is_err() {
                    break;
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    drop(sender);
    let _ = writer.join();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each connection with what it said.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut copy = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut stream, &mut copy);
                });
            }
        });
        address
    }

    #[test]
    fn bytes_arrive_late_or_not_until_the_loss_is_over_and_a_cut_ends_the_connection() {
        let proxy = Proxy::start(&echo().to_string()).unwrap();
        let mut stream = TcpStream::connect(proxy.address).unwrap();
        let mut byte = [0];
        let begun = Instant::now();
        proxy.delay(Duration::from_millis(50));
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut byte).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100), "there and back: {:?}", begun.elapsed());
        proxy.delay(Duration::ZERO);
        proxy.lose(Way::Up, true);
        stream.write_all(b"b").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(stream.read_exact(&mut byte).is_err(), "lost");
        proxy.lose(Way::Up, false);
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
        proxy.cut(true);
        assert_eq!(stream.read(&mut byte).unwrap_or(0), 0);
    }
}
