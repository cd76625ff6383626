//! A name server of a library, with a handler that the test scripts.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::proto::op::{Header, HeaderCounts, LowerQuery, Metadata, ResponseCode};
use hickory_resolver::proto::rr::rdata::SOA;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

/// What the server does with a question.
#[derive(Clone)]
pub(super) enum Says {
    /// What its table says.
    Truth,
    Nothing,
    Code(ResponseCode),
    /// These records, whatever the question is.
    Records(Vec<Record>),
    /// The truth over TCP, and over UDP that it is too long.
    Truncated,
}

pub(super) struct Server {
    address: SocketAddr,
    handler: Handler,
    _running: hickory_server::Server<Handler>,
}

#[derive(Clone)]
struct Handler {
    state: Arc<Mutex<State>>,
    questions: Arc<watch::Sender<usize>>,
}

struct State {
    names: HashMap<String, Vec<IpAddr>>,
    /// Names about which the server says that it failed.
    failing: HashSet<String>,
    says: Says,
    ttl: u32,
    negative_ttl: u32,
}

impl Server {
    pub(super) async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let state = State {
            names: HashMap::new(),
            failing: HashSet::new(),
            says: Says::Truth,
            ttl: 60,
            negative_ttl: 60,
        };
        let questions = Arc::new(watch::Sender::new(0));
        let handler = Handler { state: Arc::new(Mutex::new(state)), questions };
        let mut running = hickory_server::Server::new(handler.clone());
        running.register_socket(udp);
        running.register_listener(tcp, Duration::from_secs(5), 64);
        Self { address, handler, _running: running }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn set(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.state().names.insert(format!("{name}."), addresses);
    }

    pub(super) fn fail(&self, name: &str) {
        self.state().failing.insert(format!("{name}."));
    }

    pub(super) fn remove(&self, name: &str) {
        self.state().names.remove(&format!("{name}."));
    }

    pub(super) fn say(&self, says: Says) {
        self.state().says = says;
    }

    pub(super) fn set_ttl(&self, seconds: u32) {
        self.state().ttl = seconds;
    }

    pub(super) fn set_negative_ttl(&self, seconds: u32) {
        self.state().negative_ttl = seconds;
    }

    /// How many questions came.
    pub(super) fn questions(&self) -> usize {
        *self.handler.questions.borrow()
    }

    /// Waits until so many questions came.
    pub(super) async fn until_asked(&self, questions: usize) {
        self.handler.questions.subscribe().wait_for(|asked| *asked >= questions).await.unwrap();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.handler.state.lock().unwrap()
    }
}

/// An address record.
pub(super) fn address(owner: &str, ttl: u32, address: &str) -> Record {
    Record::from_rdata(Name::from_ascii(owner).unwrap(), ttl, RData::from(address.parse::<IpAddr>().unwrap()))
}

/// What a handler answers with.
struct Answer {
    code: ResponseCode,
    records: Vec<Record>,
    authority: Option<Record>,
    truncated: bool,
}

impl State {
    fn answer(&self, query: &LowerQuery, protocol: Protocol) -> Option<Answer> {
        let plain = |code| Answer { code, records: Vec::new(), authority: None, truncated: false };
        match &self.says {
            Says::Nothing => None,
            Says::Code(code) => Some(plain(*code)),
            Says::Records(records) => {
                Some(Answer { records: records.clone(), ..plain(ResponseCode::NoError) })
            }
            Says::Truncated if protocol == Protocol::Udp => {
                Some(Answer { truncated: true, ..plain(ResponseCode::NoError) })
            }
            Says::Truth | Says::Truncated => Some(self.truth(query)),
        }
    }

    fn truth(&self, query: &LowerQuery) -> Answer {
        let name = Name::from(query.name());
        if self.failing.contains(&name.to_ascii()) {
            let code = ResponseCode::ServFail;
            return Answer { code, records: Vec::new(), authority: None, truncated: false };
        }
        let addresses = self.names.get(&name.to_ascii());
        let is_wanted = |address: &&IpAddr| {
            query.query_type() == if address.is_ipv4() { RecordType::A } else { RecordType::AAAA }
        };
        let records: Vec<_> = addresses
            .into_iter()
            .flatten()
            .filter(is_wanted)
            .map(|address| Record::from_rdata(name.clone(), self.ttl, RData::from(*address)))
            .collect();
        let code = if addresses.is_some() { ResponseCode::NoError } else { ResponseCode::NXDomain };
        let soa = RData::SOA(SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, self.negative_ttl));
        let authority = records.is_empty().then(|| Record::from_rdata(Name::root(), self.negative_ttl, soa));
        Answer { code, records, authority, truncated: false }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let asked = request.request_info().unwrap();
        let answer = self.state.lock().unwrap().answer(asked.query, request.protocol());
        self.questions.send_modify(|questions| *questions += 1);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let Some(answer) = answer else {
            return Header { metadata, counts: HeaderCounts::default() }.into();
        };
        metadata.response_code = answer.code;
        metadata.truncation = answer.truncated;
        metadata.recursion_available = true;
        let response = MessageResponseBuilder::from_message_request(request);
        let response = response.build(metadata, &answer.records, &answer.authority, [], []);
        response_handle.send_response(response).await.unwrap()
    }
}
