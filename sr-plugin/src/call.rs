//! One call of one method, in either form.

use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use serde_json::Value;

use crate::failure::{Failure, Number};
use crate::host::Host;
use crate::log::{self, Severity};
use crate::method::{Arguments, Method, UsageError};

/// Calls a method as its command line asks for: the daemon's form with `--json`, else that for people.
pub fn call(method: &Method, words: &[String]) -> ExitCode {
    let is = |word: &str, names: [&str; 2]| names.contains(&word);
    // Whatever follows `--` is a value.
    let options = words.iter().take_while(|word| *word != "--");
    if options.clone().any(|word| is(word, ["-h", "--help"])) {
        print(&method.help());
        return ExitCode::SUCCESS;
    }
    if options.clone().any(|word| is(word, ["-j", "--json"])) {
        return call_json(method);
    }
    match method.arguments_of_words(words) {
        Ok(arguments) => match run(method, arguments) {
            Ok(result) => {
                print(&format!("{result}\n"));
                ExitCode::SUCCESS
            }
            Err(failure) => {
                complain(&format!("error: {failure}"));
                ExitCode::FAILURE
            }
        },
        Err(UsageError(error)) => {
            complain(&format!("{}\n{}: error: {error}", method.usage(), method.name));
            2.into()
        }
    }
}

fn call_json(method: &Method) -> ExitCode {
    let mut text = Vec::new();
    let read = io::stdin().lock().read_to_end(&mut text).map_err(|error| Failure::of(&error));
    let result = read.and_then(|_| method.arguments_of_json(&text)).and_then(|arguments| run(method, arguments));
    match result {
        Ok(result) => {
            print(&format!("{result}\n"));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            print(&format!("{}\n", failure.to_json()));
            ExitCode::FAILURE
        }
    }
}

fn run(method: &Method, arguments: Arguments) -> Result<Value, Failure> {
    let (start, dbg) = (Instant::now(), arguments.dbg().to_owned());
    let defect = |_| Err(Failure::numbered(Number::General, "a defect of the plugin; its standard error tells more"));
    let result = Host::of_executable()
        .and_then(|host| catch_unwind(AssertUnwindSafe(|| (method.run)(&host, arguments))).unwrap_or_else(defect));
    let took = start.elapsed();
    match &result {
        Ok(_) => log::line(Severity::Information, &format!("{dbg}: {}: done in {took:.1?}", method.name)),
        Err(failure) => {
            log::line(Severity::Error, &format!("{dbg}: {}: failed after {took:.1?}: {failure}", method.name));
        }
    }
    result
}

/// Prints an answer. Where nobody reads it, there is nobody to tell.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints an error.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
