use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::server::{LONGEST_LINE, MOST_CONNECTIONS};
use super::*;

/// A worker that tells what it was told.
fn start() -> (TempDir, PathBuf, Server) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Server::start(&path, |command| match command {
        Command::Pause => Err(Refused::new("not now")),
        Command::Resume => panic!("a bug in the handler"),
        Command::Metrics => Ok("a_metric 1\n".into()),
        command => Ok(json!({ "told": command })),
    });
    (folder, path, server.unwrap())
}

/// Sends lines, and reads as many answers as there come.
fn talk(path: &Path, lines: impl AsRef<[u8]>) -> Vec<Value> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(lines.as_ref()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let answers = BufReader::new(stream).lines();
    answers.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

fn message(reply: &Value) -> &str {
    reply["error"]["message"].as_str().unwrap()
}

#[test]
fn commands_are_these_lines() {
    let rate = |bytes_per_second, in_flight| Command::SetRate { bytes_per_second, in_flight };
    let mib = NonZeroU64::new(1 << 20);
    let lines = [
        (Command::Status, r#"{"command":"status"}"#),
        (Command::Pause, r#"{"command":"pause"}"#),
        (Command::Resume, r#"{"command":"resume"}"#),
        (Command::Abort { path: None }, r#"{"command":"abort"}"#),
        (Command::Abort { path: Some("/sr".into()) }, r#"{"command":"abort","path":"/sr"}"#),
        (rate(None, None), r#"{"command":"set-rate"}"#),
        (rate(Some(mib), None), r#"{"command":"set-rate","bytes_per_second":1048576}"#),
        (rate(Some(None), Some(NonZeroU32::new(4))), r#"{"command":"set-rate","bytes_per_second":null,"in_flight":4}"#),
        (Command::Collect { path: None }, r#"{"command":"collect"}"#),
        (Command::Metrics, r#"{"command":"metrics"}"#),
    ];
    for (command, line) in lines {
        assert_eq!(serde_json::to_string(&command).unwrap(), line);
        assert_eq!(serde_json::from_str::<Command>(line).unwrap(), command);
    }
}

#[test]
fn asking_gives_the_answer_or_the_refusal() {
    let (_folder, path, _server) = start();
    let collect = Command::Collect { path: Some("/sr".into()) };
    assert_eq!(ask(&path, &collect).unwrap(), json!({"told": {"command": "collect", "path": "/sr"}}));
    let refused = ask(&path, &Command::Pause).unwrap_err();
    assert!(matches!(&refused, AskError::Refused(_)) && refused.to_string() == "not now", "{refused:?}");
}

#[test]
fn a_connection_takes_many_requests_and_outlives_bad_ones() {
    let (_folder, path, _server) = start();
    let long = "x".repeat(LONGEST_LINE as usize * 2);
    let lines = [
        r#"{"command":"status","colour":"blue"}"#,
        r#"{"command":"dance"}"#,
        "",
        "{",
        "\u{1}\u{2}",
        &long,
        r#"{"command":"set-rate","bytes_per_second":0}"#,
        r#"{"command":"status"}"#,
    ];
    let replies = talk(&path, lines.join("\n"));
    assert_eq!(replies.len(), 7, "{replies:?}");
    let status = json!({"ok": {"told": {"command": "status"}}});
    assert_eq!((&replies[0], &replies[6]), (&status, &status));
    assert!(message(&replies[1]).contains("unknown variant `dance`"));
    assert!(message(&replies[2]).contains("EOF") && message(&replies[3]).contains("expected value"));
    assert_eq!(message(&replies[4]), "the request is longer than 65536 bytes");
    assert!(message(&replies[5]).contains("nonzero"), "{:?}", replies[5]);
}

#[test]
fn a_line_of_the_greatest_length_is_no_longer_than_that() {
    let (_folder, path, _server) = start();
    let fill = |length: usize| {
        let command = r#"{"command":"status"}"#;
        format!("{command}{}\n", " ".repeat(length - 1 - command.len()))
    };
    let replies = talk(&path, fill(LONGEST_LINE as usize) + &fill(LONGEST_LINE as usize + 1));
    assert!(replies[0].get("ok").is_some() && replies[1].get("error").is_some() && replies.len() == 2);
}

#[test]
fn a_panic_costs_one_connection() {
    let (_folder, path, _server) = start();
    assert!(talk(&path, "{\"command\":\"resume\"}\n").is_empty());
    assert!(ask(&path, &Command::Status).is_ok());
}

#[test]
fn connections_beyond_the_limit_are_sent_away() {
    let (_folder, path, _server) = start();
    let mut open: Vec<_> = (0..MOST_CONNECTIONS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let refused = UnixStream::connect(&path).unwrap();
    let mut line = String::new();
    BufReader::new(refused).read_line(&mut line).unwrap();
    assert_eq!(line, "{\"error\":{\"message\":\"too many connections; try again\"}}\n");
    open.clear();
    // The threads notice in their own time.
    let start = Instant::now();
    while let Err(error) = ask(&path, &Command::Status) {
        assert!(start.elapsed() < Duration::from_secs(5), "{error}");
    }
}

#[test]
fn prometheus_can_ask_in_http() {
    let (_folder, path, _server) = start();
    let get = |what: &str| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(format!("GET {what} HTTP/1.1\r\nHost: worker\r\nAccept: */*\r\n\r\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let metrics = get("/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("\r\nContent-Length: 11\r\n") && metrics.ends_with("\r\n\r\na_metric 1\n"), "{metrics}");
    assert!(get("/").starts_with("HTTP/1.1 404 "));
}

#[test]
fn the_socket_is_for_its_user_alone_and_goes_with_the_server() {
    let (folder, path, server) = start();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut idle = UnixStream::connect(&path).unwrap();
    assert!(ask(&path, &Command::Status).is_ok(), "the one before is being served");
    let start = Instant::now();
    drop(server);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "closed");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(matches!(ask(&path, &Command::Status), Err(AskError::NotRunning { .. })));
}

#[test]
fn only_a_socket_that_nobody_answers_on_is_replaced() {
    let (_folder, path, server) = start();
    let again = || Server::start(&path, |_| Ok(Value::Null));
    assert!(matches!(again(), Err(SocketError::InUse { .. })));
    assert!(ask(&path, &Command::Status).is_ok(), "and the first goes on");
    drop(server);

    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists() && matches!(ask(&path, &Command::Status), Err(AskError::NotRunning { .. })));
    let server = again().unwrap();
    assert_eq!(ask(&path, &Command::Status).unwrap(), Value::Null);
    drop(server);

    fs::write(&path, "something dear").unwrap();
    assert!(matches!(again(), Err(SocketError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "something dear");
    assert!(matches!(Server::start(&path.join("none/socket"), |_| Ok(Value::Null)), Err(SocketError::File(_))));
}

#[test]
fn a_server_takes_away_only_its_own_socket() {
    let (_folder, path, server) = start();
    fs::remove_file(&path).unwrap();
    let second = Server::start(&path, |_| Ok(Value::Null)).unwrap();
    drop(server);
    assert!(ask(&path, &Command::Status).is_ok());
    drop(second);
}

#[test]
fn a_worker_that_says_nothing_or_nonsense_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let asked = client::ask_within(&path, &Command::Status, Duration::from_millis(50));
    assert!(matches!(asked, Err(AskError::TimedOut { .. })));
    drop(listener.accept().unwrap());
    let answering = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (&stream).write_all(b"what?\n").unwrap();
    });
    assert!(matches!(ask(&path, &Command::Status), Err(AskError::Reply { .. })));
    answering.join().unwrap();
}
