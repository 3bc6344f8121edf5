//! The data plane of one simulated replica: datagrams that are said again until they are heard, as TCP would, and a
//! word for those who are gone. Partitions, delays and deaths are those of the simulated network.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_collective::CollectiveError;
use lockstep_proto::ids::{Generation, Rank};
use lockstep_proto::message::Open;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use turmoil::net::UdpSocket;

/// What was not heard is said again after this.
const AGAIN: Duration = Duration::from_millis(250);

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Datagram {
    /// A rank's part in operation number `seq` of a generation; 0 is the meeting.
    Say(Box<Said>),
    /// It arrived.
    Heard { generation: Generation, by: Rank, seq: u64 },
    /// The rank has left, or was never there.
    Gone { generation: Generation, from: Rank },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Said {
    generation: Generation,
    secret: String,
    from: Rank,
    to: Rank,
    seq: u64,
    op: String,
    bytes: Vec<u8>,
    reply_to: String,
}

/// One end of the mesh, over all generations of a replica.
#[derive(Debug)]
pub struct Endpoint {
    pub address: String,
    port: u16,
    inner: Mutex<Inner>,
    /// Something arrived, or was aborted.
    changed: Notify,
    /// There is something to send.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// The generation that it takes part in.
    place: Option<Place>,
    /// Everything up to this one is over here.
    left: Generation,
    aborted: Generation,
    parts: BTreeMap<(Generation, u64, Rank), Part>,
    gone: BTreeSet<(Generation, Rank)>,
    unheard: BTreeMap<(Generation, u64, Rank), (String, Datagram)>,
    outgoing: Vec<(String, Datagram)>,
}

#[derive(Clone, Debug)]
struct Place {
    generation: Generation,
    secret: String,
    rank: Rank,
    addresses: Vec<String>,
    deadline: Duration,
    seq: u64,
}

#[derive(Clone, Debug)]
struct Part {
    secret: String,
    op: String,
    bytes: Vec<u8>,
}

impl Endpoint {
    /// Listens at `host:port` until the host dies.
    pub fn start(host: &str, port: u16) -> Arc<Self> {
        let endpoint = Arc::new(Self {
            address: format!("{host}:{port}"),
            port,
            inner: Mutex::default(),
            changed: Notify::new(),
            wanted: Notify::new(),
        });
        tokio::spawn(Arc::clone(&endpoint).carry());
        endpoint
    }

    async fn carry(self: Arc<Self>) {
        let socket = UdpSocket::bind(("0.0.0.0", self.port)).await.expect("a port of its own");
        let mut buffer = vec![0; 1 << 16];
        let mut again = tokio::time::interval(AGAIN);
        loop {
            tokio::select! {
                biased;
                received = socket.recv_from(&mut buffer) => {
                    if let Ok((len, _)) = received
                        && let Ok(datagram) = serde_json::from_slice(&buffer[..len])
                    {
                        self.hear(datagram);
                    }
                }
                () = self.wanted.notified() => {}
                _ = again.tick() => {
                    let mut inner = self.inner.lock().unwrap();
                    let unheard: Vec<_> = inner.unheard.values().cloned().collect();
                    inner.outgoing.extend(unheard);
                }
            }
            for (address, datagram) in std::mem::take(&mut self.inner.lock().unwrap().outgoing) {
                // An address that is not there any more is silence.
                let _ = socket.try_send_to(&serde_json::to_vec(&datagram).expect("plain data"), address.as_str());
            }
        }
    }

    fn hear(&self, datagram: Datagram) {
        let mut inner = self.inner.lock().unwrap();
        match datagram {
            Datagram::Say(said) => {
                let Said { generation, secret, from, to, seq, op, bytes, reply_to } = *said;
                if generation <= inner.left {
                    // What a host does with bytes for a connection that it closed.
                    inner.outgoing.push((reply_to, Datagram::Gone { generation, from: to }));
                    return;
                }
                inner.parts.insert((generation, seq, from), Part { secret, op, bytes });
                // Whoever has not come to this generation yet hears it again later.
                if inner.place.as_ref().is_some_and(|place| place.generation == generation) {
                    inner.outgoing.push((reply_to, Datagram::Heard { generation, by: to, seq }));
                }
            }
            Datagram::Heard { generation, by, seq } => {
                inner.unheard.remove(&(generation, seq, by));
            }
            Datagram::Gone { generation, from } => {
                inner.gone.insert((generation, from));
            }
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Takes a place in a generation and waits for all others to have taken theirs.
    pub async fn meet(&self, open: &Open, rank: Rank, deadline: Duration) -> Result<(), CollectiveError> {
        {
            let mut inner = self.inner.lock().unwrap();
            inner.parts.retain(|(generation, ..), _| *generation >= open.generation);
            inner.unheard.clear();
            inner.place = Some(Place {
                generation: open.generation,
                secret: open.rendezvous.clone(),
                rank,
                addresses: open.members.iter().map(|member| member.address.clone()).collect(),
                deadline,
                seq: 0,
            });
        }
        self.exchange(open.generation, "meeting", Vec::new()).await.map(drop).map_err(|error| match error {
            CollectiveError::Deadline { rank, waited, .. } => CollectiveError::NeverCame {
                rank,
                address: open.members[rank.0 as usize].address.clone(),
                generation: open.generation,
                waited,
                cause: "silence".into(),
            },
            other => other,
        })
    }

    /// Everybody's bytes, by rank.
    pub async fn exchange(
        &self,
        generation: Generation,
        op: &str,
        mine: Vec<u8>,
    ) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let (place, seq) = self.say(generation, op, &mine)?;
        let started = Instant::now();
        loop {
            let changed = self.changed.notified();
            if let Some(result) = self.result(&place, seq, op) {
                return result;
            }
            let left = place.deadline.saturating_sub(started.elapsed());
            if tokio::time::timeout(left, changed).await.is_err() {
                let inner = self.inner.lock().unwrap();
                let missing = (0..place.addresses.len() as u32)
                    .map(Rank)
                    .find(|rank| !inner.parts.contains_key(&(generation, seq, *rank)));
                let operation = format!("{op}, number {seq}");
                let rank = missing.unwrap_or(place.rank);
                return Err(CollectiveError::Deadline { rank, operation, waited: place.deadline });
            }
        }
    }

    fn say(&self, generation: Generation, op: &str, mine: &[u8]) -> Result<(Place, u64), CollectiveError> {
        let mut inner = self.inner.lock().unwrap();
        let Some(place) = inner.place.as_mut().filter(|place| place.generation == generation) else {
            return Err(CollectiveError::Aborted);
        };
        let seq = place.seq;
        place.seq += 1;
        let place = place.clone();
        let part = Part { secret: place.secret.clone(), op: op.to_owned(), bytes: mine.to_vec() };
        inner.parts.insert((generation, seq, place.rank), part);
        for (rank, address) in (0..).map(Rank).zip(&place.addresses).filter(|(rank, _)| *rank != place.rank) {
            let datagram = Datagram::Say(Box::new(Said {
                generation,
                secret: place.secret.clone(),
                from: place.rank,
                to: rank,
                seq,
                op: op.to_owned(),
                bytes: mine.to_vec(),
                reply_to: self.address.clone(),
            }));
            inner.outgoing.push((address.clone(), datagram.clone()));
            inner.unheard.insert((generation, seq, rank), (address.clone(), datagram));
        }
        drop(inner);
        self.wanted.notify_one();
        Ok((place, seq))
    }

    /// What has come of an operation, if anything has.
    fn result(&self, place: &Place, seq: u64, op: &str) -> Option<Result<Vec<Vec<u8>>, CollectiveError>> {
        let inner = self.inner.lock().unwrap();
        let generation = place.generation;
        if inner.aborted >= generation || inner.left >= generation {
            return Some(Err(CollectiveError::Aborted));
        }
        let ranks = (0..place.addresses.len() as u32).map(Rank);
        let parts: Vec<(Rank, &Part)> = ranks
            .filter_map(|rank| inner.parts.get(&(generation, seq, rank)).map(|part| (rank, part)))
            .filter(|(_, part)| part.secret == place.secret)
            .collect();
        if let Some((rank, part)) = parts.iter().find(|(_, part)| part.op != op) {
            return Some(Err(CollectiveError::Mismatch {
                rank: *rank,
                ours: op.to_owned(),
                theirs: part.op.clone(),
                detail: format!("number {seq}"),
                before: String::new(),
            }));
        }
        if parts.len() == place.addresses.len() {
            return Some(Ok(parts.into_iter().map(|(_, part)| part.bytes.clone()).collect()));
        }
        let (_, rank) = inner.gone.iter().find(|(of, _)| *of == generation)?;
        let operation = format!("{op}, number {seq}");
        Some(Err(CollectiveError::PeerGone { rank: *rank, operation, how: "it left".into() }))
    }

    /// Aborts everything up to `generation`, now and in future.
    pub fn abort(&self, generation: Generation) {
        let mut inner = self.inner.lock().unwrap();
        inner.aborted = inner.aborted.max(generation);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Leaves a generation: its peers are told.
    pub fn leave(&self, generation: Generation) {
        let mut inner = self.inner.lock().unwrap();
        inner.left = inner.left.max(generation);
        if let Some(place) = inner.place.take_if(|place| place.generation == generation) {
            inner.unheard.clear();
            for (_, address) in (0..).map(Rank).zip(&place.addresses).filter(|(rank, _)| *rank != place.rank) {
                inner.outgoing.push((address.clone(), Datagram::Gone { generation, from: place.rank }));
            }
        }
        drop(inner);
        self.wanted.notify_one();
        self.changed.notify_waiters();
    }
}
