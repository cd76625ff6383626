//! The forwarder between raw sockets: the test is both the gateway and the
//! workspace, and reads every byte that either of them gets.

mod message_cases;
mod connections;
mod exchanges;
mod failures;
mod harness;
mod reachability;
mod stamps;
mod workspace_start;
mod tls;
mod tunnels;
