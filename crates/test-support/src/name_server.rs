//! A DNS server small enough to be understood, for tests and the quickstart.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// How long an answer over UDP may be for a resolver that does not say (RFC
/// 1035, section 4.2.1).
const MIN_DATAGRAM: u16 = 512;

/// How often a port is tried that UDP and TCP have both free.
const PORT_TRIES: usize = 16;

/// What a [`NameServer`] does with a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Answers from its table.
    #[default]
    Answer,
    /// Answers nothing, as a server behind a broken network.
    Silent,
    /// Answers A questions from its table and AAAA not at all, as some do.
    OnlyA,
    /// Answers every question with SERVFAIL.
    Fail,
}

/// A DNS server on loopback, over UDP and TCP on one port, that answers A and
/// AAAA questions from a table. Both can be changed while it runs.
///
/// A name that is not in the table does not exist (NXDOMAIN). It stops when it
/// is dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// use std::net::{IpAddr, Ipv4Addr};
///
/// use kube_coders_test_support::NameServer;
///
/// let server = NameServer::start().await?;
/// server.set("code-alice.test", [IpAddr::from(Ipv4Addr::LOCALHOST)]);
/// println!("kube-coders run --dns-server {}", server.address());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    // Dropped with the server, which ends both tasks.
    _tasks: JoinSet<()>,
}

impl NameServer {
    /// Starts a server with an empty table on a free port of 127.0.0.1. Answers
    /// are good for 60 s, "does not exist" for 5 s.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn start() -> io::Result<Self> {
        let (tcp, udp) = bind().await?;
        let address = tcp.local_addr()?;
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, shared.clone()));
        tasks.spawn(serve_tcp(tcp, shared.clone()));
        Ok(Self { address, shared, _tasks: tasks })
    }

    /// The address at which it listens, over UDP and over TCP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives a name these addresses in place of any it had. Without any, the
    /// name exists and has no address.
    pub fn set(&self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.shared.zone().names.insert(key(name), addresses.into_iter().collect());
    }

    /// Takes a name out, which then does not exist.
    pub fn remove(&self, name: &str) {
        self.shared.zone().names.remove(&key(name));
    }

    /// Answers questions about this name and the names below it with SERVFAIL from now on.
    pub fn fail_below(&self, name: &str) {
        self.shared.zone().failing.push(key(name));
    }

    /// Changes what it does with questions from now on.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.zone().mode = mode;
    }

    /// How long answers are good from now on; parts of a second are cut off.
    pub fn set_ttl(&self, ttl: Duration) {
        self.shared.zone().ttl = seconds(ttl);
    }

    /// How long "does not exist" is good from now on; parts of a second are cut
    /// off. With `None` the answer has no SOA record, and so says nothing of it.
    pub fn set_negative_ttl(&self, ttl: Option<Duration>) {
        self.shared.zone().negative_ttl = ttl.map(seconds);
    }

    /// How many questions it was asked, whether it answered or not.
    #[must_use]
    pub fn questions(&self) -> usize {
        self.shared.questions.load(Ordering::SeqCst)
    }
}

#[derive(Debug, Default)]
struct Shared {
    zone: Mutex<Zone>,
    questions: AtomicUsize,
}

impl Shared {
    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().expect("nothing panics while it holds the zone")
    }

    /// The answer to a question in bytes, at most so long for a datagram.
    fn answer(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        if question.metadata.message_type != MessageType::Query {
            return None;
        }
        self.questions.fetch_add(1, Ordering::SeqCst);
        let answer = self.zone().answer(&question)?;
        let bytes = answer.to_vec().ok()?;
        let limit = question.edns.as_ref().map_or(MIN_DATAGRAM, |edns| edns.max_payload().max(MIN_DATAGRAM));
        match transport {
            Transport::Udp if bytes.len() > usize::from(limit) => answer.truncate().to_vec().ok(),
            _ => Some(bytes),
        }
    }
}

#[derive(Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug)]
struct Zone {
    names: HashMap<String, Vec<IpAddr>>,
    failing: Vec<String>,
    mode: Mode,
    ttl: u32,
    negative_ttl: Option<u32>,
}

impl Default for Zone {
    fn default() -> Self {
        Self {
            names: HashMap::new(),
            failing: Vec::new(),
            mode: Mode::default(),
            ttl: 60,
            negative_ttl: Some(5),
        }
    }
}

impl Zone {
    fn answer(&self, question: &Message) -> Option<Message> {
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = match (self.mode, &*question.queries) {
            (Mode::Silent, _) => return None,
            (Mode::Fail, _) => ResponseCode::ServFail,
            (Mode::OnlyA, [query]) if query.query_type() == RecordType::AAAA => return None,
            (Mode::Answer | Mode::OnlyA, [query]) if question.metadata.op_code == OpCode::Query => {
                self.look_up(query, &mut answer)
            }
            (Mode::Answer | Mode::OnlyA, _) => ResponseCode::NotImp,
        };
        answer.queries.clone_from(&question.queries);
        Some(answer)
    }

    fn look_up(&self, query: &Query, answer: &mut Message) -> ResponseCode {
        let name = key(&query.name().to_ascii());
        if self.failing.iter().any(|failing| is_within(&name, failing)) {
            return ResponseCode::ServFail;
        }
        let addresses = self.names.get(&name);
        for address in addresses.into_iter().flatten() {
            let data = RData::from(*address);
            if data.record_type() == query.query_type() {
                answer.add_answer(Record::from_rdata(query.name().clone(), self.ttl, data));
            }
        }
        if let (Some(ttl), true) = (self.negative_ttl, answer.answers.is_empty()) {
            // A negative answer is as good as its SOA record says (RFC 2308,
            // section 5).
            let authority = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, ttl);
            answer.add_authority(Record::from_rdata(Name::root(), ttl, RData::SOA(authority)));
        }
        match addresses {
            Some(_) => ResponseCode::NoError,
            None => ResponseCode::NXDomain,
        }
    }
}

/// A name as the table has it: DNS does not distinguish upper case from lower case.
fn key(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Whether `name` is `above` or a name below it.
fn is_within(name: &str, above: &str) -> bool {
    name.strip_suffix(above).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)
}

async fn bind() -> io::Result<(TcpListener, UdpSocket)> {
    let mut tries = 0;
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((tcp, udp)),
            // Another process has the port over UDP.
            Err(_) if tries < PORT_TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // What fails here is one datagram: the peer of an earlier one is gone.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(answer) = shared.answer(&buffer[..length], Transport::Udp) {
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve_connection(stream, shared.clone()));
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Questions and answers over TCP have their length before them (RFC 1035,
/// section 4.2.2).
async fn serve_connection(mut stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await?;
        if let Some(answer) = shared.answer(&question, Transport::Tcp) {
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat()).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(server: &NameServer, name: &str, kind: RecordType) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(&question.to_vec().unwrap(), server.address()).await.unwrap();
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).await.unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.metadata.id, question.metadata.id);
        answer
    }

    #[tokio::test]
    async fn the_table_is_answered_from() {
        let server = NameServer::start().await.unwrap();
        server.set("A.test.", ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]);
        server.set_ttl(Duration::from_secs(7));
        let answer = ask(&server, "a.TEST.", RecordType::A).await;
        assert_eq!(answer.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [7]);
        assert_eq!(answer.answers[0].data.ip_addr(), Some("127.0.0.1".parse().unwrap()));
        let answer = ask(&server, "a.test.", RecordType::AAAA).await;
        assert_eq!(answer.answers[0].data.ip_addr(), Some("::1".parse().unwrap()));
        let answer = ask(&server, "a.test.", RecordType::MX).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(server.questions(), 3);
        server.remove("a.test");
        let answer = ask(&server, "a.test.", RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }

    #[tokio::test]
    async fn a_missing_name_has_a_soa_or_none() {
        let server = NameServer::start().await.unwrap();
        assert_eq!(ask(&server, "a.test.", RecordType::A).await.authorities.len(), 1);
        server.set_negative_ttl(None);
        assert_eq!(ask(&server, "a.test.", RecordType::A).await.authorities.len(), 0);
    }

    #[tokio::test]
    async fn it_can_fail() {
        let server = NameServer::start().await.unwrap();
        server.set_mode(Mode::Fail);
        let answer = ask(&server, "a.test.", RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    }
}
