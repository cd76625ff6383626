//! Answers that are not valid: no request goes where they lead.

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::CNAME;
use hickory_resolver::proto::rr::{Name, RData, Record};
use tokio::net::UdpSocket;

use super::server::{Says, Server, address};
use super::*;

fn alias(owner: &str, target: &str) -> Record {
    let target = RData::CNAME(CNAME(Name::from_ascii(target).unwrap()));
    Record::from_rdata(Name::from_ascii(owner).unwrap(), 60, target)
}

async fn told(records: Vec<Record>) -> KnownAddresses {
    let server = Server::start().await;
    server.say(Says::Records(records));
    ask(&resolver_of(&server), "a.test").await
}

#[tokio::test]
async fn records_of_another_name_lead_nowhere() {
    // hickory reads it as an answer without records, as servers without SOA records give it.
    assert_eq!(told(vec![address("b.test.", 60, "127.0.0.6")]).await, Err(ResolveError::NotFound));
    let both = vec![address("b.test.", 60, "127.0.0.6"), address("a.test.", 60, "127.0.0.1")];
    assert_eq!(told(both).await, ips(&["127.0.0.1"]));
}

#[tokio::test]
async fn an_alias_leads_to_its_records_and_no_others() {
    let chain = vec![alias("a.test.", "b.test."), address("b.test.", 60, "127.0.0.2")];
    assert_eq!(told(chain).await, ips(&["127.0.0.2"]));
    let other = vec![alias("a.test.", "b.test."), address("a.test.", 60, "127.0.0.6")];
    assert_eq!(told(other).await, Err(ResolveError::Unavailable));
}

#[tokio::test]
async fn aliases_in_a_circle_end() {
    let circle = vec![alias("a.test.", "b.test."), alias("b.test.", "a.test.")];
    assert_eq!(told(circle).await, Err(ResolveError::NotFound));
}

/// Answers every question with addresses after changing the answer.
async fn liar(change: fn(&mut Message)) -> (NameServers, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = NameServers::Listed(vec![socket.local_addr().unwrap()]);
    let serving = tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
            answer.metadata.response_code = ResponseCode::NoError;
            answer.queries.clone_from(&question.queries);
            answer.add_answer(address("a.test.", 60, "127.0.0.6"));
            change(&mut answer);
            socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    (servers, serving)
}

#[tokio::test]
async fn an_answer_to_another_question_is_none() {
    let changes: [fn(&mut Message); 2] = [
        |answer| answer.metadata.id = answer.metadata.id.wrapping_add(1),
        |answer| {
            answer.queries[0].set_name(Name::from_ascii("b.test.").unwrap());
        },
    ];
    for change in changes {
        let (servers, serving) = liar(change).await;
        let resolver = Arc::new(Resolver::new(&servers).unwrap());
        let asking = Arc::clone(&resolver);
        let answer = tokio::spawn(async move { ask(&asking, "a.test").await });
        tokio::task::yield_now().await;
        pass(2 * SECOND).await;
        assert_eq!(answer.await.unwrap(), Err(ResolveError::Unavailable));
        serving.abort();
    }
}
