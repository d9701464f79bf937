//! Runs a program under strace, and reads what that wrote.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::process::{Command, Output, Stdio};

/// Calls that change files, names or what a descriptor means, and those that are refused. `?` lets a call be unknown on
/// this machine.
const TRACED: &str = "?open,openat,?openat2,?creat,read,readv,write,writev,pwrite64,pwritev,pwritev2,lseek,\
    truncate,ftruncate,fallocate,copy_file_range,sendfile,splice,ioctl,mmap,fsync,fdatasync,syncfs,sync,\
    ?link,linkat,?symlink,symlinkat,?rename,renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat,?rmdir,?mknod,mknodat,\
    close,close_range,dup,?dup2,dup3,fcntl,clone,clone3,?fork,?vfork,chdir,fchdir,io_uring_setup,io_submit";

/// The longest write that can be recorded: far more than a program does at once.
const LONGEST: &str = "268435456";

/// Makes the command that runs `program` under strace.
pub(crate) fn command(program: &Command, options: &[&str]) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq"]).args(options).arg("--").arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    if let Some(folder) = program.get_current_dir() {
        strace.current_dir(folder);
    }
    strace
}

/// Runs it to the end.
pub(crate) fn run(mut strace: Command) -> Output {
    strace.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("strace: {error}; run `make setup` first"))
}

/// Runs a program to the end, and gives what it printed and the trace.
pub(super) fn trace(program: &Command) -> (Output, String) {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let file = folder.path().join("trace");
    let file_name = file.to_str().expect("temporary folders have plain names");
    // Reads only matter for the position that they leave behind: `raw` spares us the data.
    let raw = "raw=read,readv";
    let trace = format!("trace={TRACED}");
    let options = ["-y", "-xx", "-a1", "--seccomp-bpf", "-s", LONGEST, "-e", raw, "-e", &trace, "-o", file_name];
    let output = run(command(program, &options));
    (output, fs::read_to_string(&file).expect("strace has written it"))
}

/// A system call that has returned.
#[derive(Debug)]
pub(super) struct Call<'t> {
    /// The thread.
    pub(super) thread: u32,
    /// The name of the call.
    pub(super) name: &'t str,
    arguments: Cow<'t, str>,
    /// What is printed after `=`.
    pub(super) result: &'t str,
}

/// A moment in the trace; the number is that of the call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Moment {
    Start(usize),
    End(usize),
}

/// Reads the lines of a trace.
pub(super) fn parse(trace: &str) -> (Vec<Call<'_>>, Vec<Moment>) {
    let mut calls = Vec::new();
    let mut moments = Vec::new();
    let mut unfinished = HashMap::new();
    for line in trace.lines() {
        let (thread, line) = line.split_once(' ').expect("lines start with the thread");
        let (thread, line) = (thread.parse().expect("threads have numbers"), line.trim_start());
        if line.starts_with("+++") || line.starts_with("---") {
            continue;
        }
        if let Some(resumed) = line.strip_prefix("<... ") {
            let (_, rest) = resumed.split_once(" resumed>").expect("resumed calls say so");
            let (index, first): (usize, &str) = unfinished.remove(&thread).expect("what is resumed was started");
            let (second, result) = split_result(rest);
            let call: &mut Call<'_> = &mut calls[index];
            call.arguments = format!("{first}{second}").into();
            call.result = result;
            moments.push(Moment::End(index));
            continue;
        }
        let (name, rest) = line.split_once('(').unwrap_or_else(|| panic!("not a call: {line}"));
        let index = calls.len();
        moments.push(Moment::Start(index));
        if let Some(first) = rest.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread, (index, first.trim_end()));
            calls.push(Call { thread, name, arguments: "".into(), result: "?" });
        } else {
            let (arguments, result) = split_result(rest);
            calls.push(Call { thread, name, arguments: arguments.into(), result });
            moments.push(Moment::End(index));
        }
    }
    (calls, moments)
}

/// Splits what follows the opening parenthesis.
fn split_result(text: &str) -> (&str, &str) {
    // Its process ended while the thread was in the call.
    if let Some(arguments) = text.strip_suffix("<detached ...>") {
        return (arguments.trim_end(), "?");
    }
    let (arguments, result) = text.rsplit_once(" = ").unwrap_or_else(|| panic!("no result: {text}"));
    (arguments.trim_end().strip_suffix(')').unwrap_or(arguments), result)
}

impl<'t> Call<'t> {
    /// The number returned; `None` for an error, or a call that never returned.
    pub(super) fn returned(&self) -> Option<u64> {
        let digits = self.result.split(['<', ' ']).next().expect("split gives a first part");
        if digits.starts_with('?') || digits.starts_with('-') { None } else { Some(number(digits)) }
    }

    /// The path of the descriptor that was returned.
    pub(super) fn returned_path(&self) -> Option<String> {
        path_of_descriptor(self.result)
    }

    /// Splits the arguments at their commas.
    pub(super) fn arguments(&self) -> Vec<&str> {
        let text = &*self.arguments;
        let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
        // Strings and paths are in hexadecimal: no byte of them looks like punctuation.
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth -= 1,
                b',' if depth == 0 => {
                    parts.push(text[start..at].trim());
                    start = at + 1;
                }
                _ => {}
            }
        }
        parts.push(text[start..].trim());
        parts
    }
}

/// Reads a number, decimal, octal or hexadecimal, or the first in brackets.
pub(super) fn number(text: &str) -> u64 {
    let text = text.trim_start_matches('[').split([']', ' ']).next().expect("split gives a first part");
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None if text.starts_with('0') => u64::from_str_radix(text, 8),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|error| panic!("{text} is no number: {error}"))
}

/// Reads a descriptor as printed: its number, and the path that it is open on.
pub(super) fn descriptor(text: &str) -> u64 {
    number(text.split('<').next().expect("split gives a first part"))
}

/// Reads the path that is printed with a descriptor; `None` for what is no file.
pub(super) fn path_of_descriptor(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('<')?;
    let (path, _) = rest.split_once('>')?;
    path.starts_with('\\').then(|| text_of(path))
}

/// Reads a string argument that is text.
pub(super) fn text(argument: &str) -> String {
    text_of(argument.trim_matches('"'))
}

fn text_of(hex: &str) -> String {
    String::from_utf8(decode(hex)).expect("file names are UTF-8")
}

/// Reads a string argument.
pub(super) fn bytes(argument: &str) -> Vec<u8> {
    assert!(!argument.ends_with("..."), "a write longer than can be recorded");
    decode(argument.trim_matches('"'))
}

fn decode(hex: &str) -> Vec<u8> {
    let byte = |digits: &[u8]| {
        let digit = |byte: u8| (byte as char).to_digit(16).expect("strace prints hexadecimal") as u8;
        assert!(digits.len() == 4 && digits.starts_with(b"\\x"), "strace prints hexadecimal, not {digits:?}");
        digit(digits[2]) << 4 | digit(digits[3])
    };
    hex.as_bytes().chunks(4).map(byte).collect()
}

/// Reads the strings of an `iovec` argument, one after the other.
pub(super) fn vector(argument: &str) -> Vec<u8> {
    let strings = argument.split("iov_base=").skip(1);
    strings.flat_map(|rest| bytes(rest.split(", iov_len").next().expect("split gives a first part"))).collect()
}
