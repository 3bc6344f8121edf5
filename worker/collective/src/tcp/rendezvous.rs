//! How the ranks of a generation find each other.
//!
//! ```text
//! rank h (higher)                                   rank l (lower)
//!   connect ─────────────────────────────────────►    accept
//!   greeting: generation, from, to, lane, secret ►    all right?  no: close, wait on
//!   yes, keep ◄───────────────────────── welcome      yes: keep
//!   closed or refused: again, until the deadline
//! ```
//! Three connections for each pair: a lane each, and control.

use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use lockstep_proto::ids::{Generation, Rank};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, Socket, Type};

use super::drive::wait;
use super::greeting::{GREETING, Greeting, SECRET, WELCOME, welcome};
use super::listener::Listener;
use crate::error::CollectiveError;

/// Connections between two ranks: the lanes, then control.
const LANES: usize = 3;
/// Pause before the first repeated attempt; doubles up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// Strangers that may stand at the door without a word, at once.
const STRANGERS: usize = 1024;

/// Sockets by lane and rank.
type Sockets = [Vec<Option<TcpStream>>; LANES];

/// Someone who connected and has not finished its greeting.
struct Stranger {
    socket: TcpStream,
    bytes: [u8; GREETING],
    len: usize,
}

/// A connection that this rank makes.
struct Visit {
    rank: usize,
    lane: usize,
    state: State,
    attempts: u32,
    cause: String,
}

enum State {
    /// Waits to try again.
    Pausing(Instant),
    Connecting(TcpStream),
    /// Greeted, waits to be welcomed.
    Greeted(TcpStream, [u8; WELCOME], usize),
    Done,
}

struct Meeting<'a> {
    listener: &'a Listener,
    generation: Generation,
    secret: &'a str,
    rank: usize,
    addresses: &'a [String],
    sockets: Sockets,
    strangers: Vec<Stranger>,
    visits: Vec<Visit>,
    /// The last greeting that was refused, for people.
    refused: Option<String>,
}

/// Who meets.
pub(crate) struct Membership<'a> {
    pub(crate) generation: Generation,
    pub(crate) secret: &'a str,
    pub(crate) rank: Rank,
    /// By rank.
    pub(crate) addresses: &'a [String],
}

/// Connects this rank with all others.
pub(crate) fn rendezvous(
    listener: &Listener,
    membership: &Membership<'_>,
    deadline: Duration,
) -> Result<Sockets, CollectiveError> {
    let &Membership { generation, secret, rank, addresses } = membership;
    let (start, world) = (Instant::now(), addresses.len());
    let misuse =
        |what| Err(CollectiveError::Misuse { operation: format!("rendezvous of generation {generation}"), what });
    if rank.0 as usize >= world {
        return misuse(format!("rank {rank} in a world of {world}"));
    }
    if secret.len() > SECRET {
        return misuse(format!("a secret of {} bytes; at most {SECRET} are sent", secret.len()));
    }
    let rank = rank.0 as usize;
    let visit = |i| Visit {
        rank: i / LANES,
        lane: i % LANES,
        state: State::Pausing(start),
        attempts: 0,
        cause: "not tried yet".into(),
    };
    let row = || (0..world).map(|_| None).collect();
    let mut meeting = Meeting {
        listener,
        generation,
        secret,
        rank,
        addresses,
        sockets: [row(), row(), row()],
        strangers: Vec::new(),
        visits: (0..rank * LANES).map(visit).collect(),
        refused: None,
    };
    listener.hush();
    loop {
        if listener.is_cancelled(generation) {
            return Err(CollectiveError::Aborted);
        }
        meeting.visit();
        meeting.receive();
        let Some((missing, lane)) = meeting.missing() else { return Ok(meeting.sockets) };
        let waited = start.elapsed();
        if waited >= deadline {
            return Err(CollectiveError::NeverCame {
                rank: Rank(missing as u32),
                address: addresses[missing].clone(),
                generation,
                waited,
                cause: meeting.cause(missing, lane),
            });
        }
        meeting.sleep(deadline - waited);
    }
}

impl Meeting<'_> {
    /// The first connection that is still to be made.
    fn missing(&self) -> Option<(usize, usize)> {
        let all = (0..self.addresses.len()).flat_map(|rank| (0..LANES).map(move |lane| (rank, lane)));
        all.filter(|&(rank, _)| rank != self.rank).find(|&(rank, lane)| self.sockets[lane][rank].is_none())
    }

    fn cause(&self, rank: usize, lane: usize) -> String {
        match self.visits.iter().find(|visit| (visit.rank, visit.lane) == (rank, lane)) {
            Some(visit) => visit.cause.clone(),
            None => match &self.refused {
                Some(refused) => format!("it did not connect; {refused} was refused"),
                None => "it did not connect".into(),
            },
        }
    }

    /// Goes on with every connection that this rank makes.
    fn visit(&mut self) {
        let now = Instant::now();
        for visit in &mut self.visits {
            let greeting = Greeting {
                generation: self.generation,
                from: self.rank as u32,
                to: visit.rank as u32,
                lane: visit.lane as u8,
            };
            let address = &self.addresses[visit.rank];
            let next = match std::mem::replace(&mut visit.state, State::Done) {
                State::Pausing(until) if until <= now => connect(address).map(State::Connecting),
                State::Connecting(socket) => greet(socket, &greeting.encode(self.secret)),
                State::Greeted(socket, bytes, len) => {
                    let expected = welcome(self.generation, visit.rank as u32);
                    hear_welcome(socket, bytes, len, &expected)
                }
                other => Ok(other),
            };
            visit.state = match next {
                Ok(State::Greeted(socket, _, WELCOME)) => {
                    self.sockets[visit.lane][visit.rank] = Some(prompt(socket));
                    State::Done
                }
                Ok(state) => state,
                Err(cause) => {
                    visit.cause = cause;
                    let pause = PAUSES.0 * 2u32.saturating_pow(visit.attempts.min(8));
                    visit.attempts += 1;
                    State::Pausing(now + pause.min(PAUSES.1))
                }
            };
        }
    }

    /// Lets in whoever knows the secret of this generation.
    fn receive(&mut self) {
        while let Ok((socket, _)) = self.listener.socket.accept() {
            if socket.set_nonblocking(true).is_ok() && self.strangers.len() < STRANGERS {
                self.strangers.push(Stranger { socket, bytes: [0; GREETING], len: 0 });
            }
        }
        for mut stranger in std::mem::take(&mut self.strangers) {
            match recv(&stranger.socket, &mut stranger.bytes[stranger.len..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => continue,
                Ok((_, len)) => stranger.len += len,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => continue,
            }
            if stranger.len < GREETING {
                self.strangers.push(stranger);
            } else if let Err(refused) = self.admit(stranger) {
                self.refused = Some(refused);
            }
        }
    }

    fn admit(&mut self, stranger: Stranger) -> Result<(), String> {
        let Some((greeting, knows)) = Greeting::decode(&stranger.bytes, self.secret) else {
            return Err("something that is no rank".into());
        };
        let (from, lane) = (greeting.from as usize, usize::from(greeting.lane));
        let who = format!("rank {from} of generation {}", greeting.generation);
        if !knows {
            return Err(format!("{who} with another secret"));
        }
        if greeting.generation != self.generation {
            return Err(who);
        }
        if greeting.to as usize != self.rank || from <= self.rank || from >= self.addresses.len() || lane >= LANES {
            return Err(format!("{who}, lane {lane}, looking for rank {}", greeting.to));
        }
        let answer = welcome(self.generation, self.rank as u32);
        if send(&stranger.socket, &answer, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) != Ok(WELCOME) {
            return Err(format!("{who}, which hung up"));
        }
        // A second connection replaces the first: the peer tries again only when it has lost that.
        self.sockets[lane][from] = Some(prompt(stranger.socket));
        Ok(())
    }

    /// Waits until something can go on, or for `timeout`.
    fn sleep(&self, timeout: Duration) {
        let (now, mut timeout) = (Instant::now(), timeout);
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.listener.socket.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.wake.as_fd(), PollFlags::IN),
        ];
        fds.extend(
            self.strangers.iter().map(|stranger| PollFd::from_borrowed_fd(stranger.socket.as_fd(), PollFlags::IN)),
        );
        for visit in &self.visits {
            match &visit.state {
                State::Pausing(until) => timeout = timeout.min(until.saturating_duration_since(now)),
                State::Connecting(socket) => fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT)),
                State::Greeted(socket, ..) => fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)),
                State::Done => {}
            }
        }
        wait(&mut fds, timeout);
    }
}

fn connect(address: &str) -> Result<TcpStream, String> {
    let mut cause = "the name has no address".to_string();
    for resolved in address.to_socket_addrs().map_err(|error| error.to_string())? {
        let attempt =
            Socket::new(Domain::for_address(resolved), Type::STREAM, Some(Protocol::TCP)).and_then(|socket| {
                socket.set_nonblocking(true)?;
                match socket.connect(&resolved.into()) {
                    Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => Ok(socket),
                    other => other.map(|()| socket),
                }
            });
        match attempt {
            Ok(socket) => return Ok(socket.into()),
            Err(error) => cause = error.to_string(),
        }
    }
    Err(cause)
}

/// Greets once the connection stands.
fn greet(socket: TcpStream, greeting: &[u8; GREETING]) -> Result<State, String> {
    if let Some(error) = socket.take_error().map_err(|error| error.to_string())? {
        return Err(error.to_string());
    }
    match send(&socket, greeting, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(GREETING) => Ok(State::Greeted(socket, [0; WELCOME], 0)),
        Ok(len) => Err(format!("only {len} bytes of the greeting went")),
        Err(Errno::AGAIN | Errno::NOTCONN | Errno::INTR) => Ok(State::Connecting(socket)),
        Err(errno) => Err(errno.to_string()),
    }
}

fn hear_welcome(
    socket: TcpStream,
    mut bytes: [u8; WELCOME],
    len: usize,
    expected: &[u8; WELCOME],
) -> Result<State, String> {
    match recv(&socket, &mut bytes[len..], RecvFlags::DONTWAIT) {
        Ok((_, 0)) => Err("it closed the connection, as for another generation or secret".into()),
        Ok((_, more)) if len + more < WELCOME => Ok(State::Greeted(socket, bytes, len + more)),
        Ok(_) if bytes == *expected => Ok(State::Greeted(socket, bytes, WELCOME)),
        Ok(_) => Err("something else answers there".into()),
        Err(Errno::AGAIN | Errno::INTR) => Ok(State::Greeted(socket, bytes, len)),
        Err(errno) => Err(errno.to_string()),
    }
}

/// No waiting for more to send. Buffers are left to the system's own tuning: asking for 4 MiB took more processor time
/// for large sums over loopback, for a reason that was not looked into.
fn prompt(socket: TcpStream) -> TcpStream {
    // It works without, only slower.
    let _ = socket.set_nodelay(true);
    socket
}
