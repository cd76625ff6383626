//! The forwarder between raw sockets: the test is both the gateway and the
//! workspace, and reads every byte that either of them gets.

mod cases;
mod connections;
mod exchanges;
mod failures;
mod harness;
mod reaching;
mod stamps;
mod starting;
mod tls;
mod tunnels;
