//! The pods' programs as processes of their own: they say and answer what the protocol asks for, and end with their
//! standard input.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// An address of this machine that no other test, and no other run of this one, listens on.
fn own_address() -> String {
    let [.., high, low] = std::process::id().to_be_bytes();
    format!("127.77.{high}.{low}")
}

fn start(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halo-bench"));
    command.arg("pod").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_client_follows_orders_and_both_end_with_their_input() {
    let address = own_address();
    let mut server = start(&["serve", "--address", &address]);
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "listening\n");

    let mut client = start(&["client"]);
    let (mut orders, mut answers) =
        (client.stdin.take().unwrap(), BufReader::new(client.stdout.take().unwrap()));
    let mut ask = |order: &str| -> Value {
        writeln!(orders, "{order}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    };
    let work =
        json!({ "targets": [format!("{address}:8080")], "bytes": 10, "connections": 2, "per_second": null });
    assert_eq!(ask(&json!({ "prepare": { "requests": work } }).to_string()), "ready");
    let measured = ask(r#"{ "measure": 0.05 }"#);
    assert!(measured["measured"]["operations"].as_u64().unwrap() > 0, "{measured}");
    assert_eq!(measured["measured"]["errors"], 0);
    assert_eq!(ask(r#""finish""#), "ready");
    assert!(ask("nonsense")["failed"].as_str().unwrap().contains("nonsense"));

    drop(orders);
    assert!(client.wait().unwrap().success());
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
}
