//! XenAPI extensions: what only this back end can do, for clients of xapi.
//!
//! xapi runs an executable that is called like the method, with the whole XML-RPC call on standard input; whoever may use
//! extensions at all is a pool administrator. The first parameter is the session, which is not needed here.

use std::io::{self, Read};
use std::num::NonZeroU64;
use std::process::ExitCode;

use coalesce_worker::{Command, size};
use quick_xml::Reader;
use quick_xml::escape::escape;
use quick_xml::events::Event;

use crate::call::{complain, print};
use crate::failure::{Failure, Number};
use crate::host::Host;
use crate::sr::Sr;
use crate::worker;

/// An extension.
#[derive(Debug)]
pub struct Extension {
    /// The XenAPI method, and the executable's name.
    pub name: &'static str,
    usage: &'static str,
    run: fn(&Host, &[String]) -> Result<String, Failure>,
}

/// All extensions.
pub const EXTENSIONS: &[Extension] = &[
    Extension {
        name: "VHD.coalesce",
        usage: "VHD.coalesce(session[, sr]): merge now what can be merged, in one repository or all",
        run: |host, words| {
            for sr in chosen(host, words.first())? {
                told(worker::tell(host, &sr, &Command::Collect { path: Some(sr.folder().into()) }))?;
            }
            Ok(String::new())
        },
    },
    Extension {
        name: "VHD.status",
        usage: "VHD.status(session[, sr]): what is merged and what is left to merge, as JSON, by repository",
        run: status,
    },
    Extension {
        name: "VHD.set_rate",
        usage: "VHD.set_rate(session, [sr, ]rate): bytes per second that merges may move, as 100M, or `none`",
        run: set_rate,
    },
];

/// Finds an extension.
pub fn extension(name: &str) -> Option<&'static Extension> {
    EXTENSIONS.iter().find(|extension| extension.name == name)
}

/// Answers one call.
pub fn call(extension: &Extension, words: &[String]) -> ExitCode {
    if words != ["--xmlrpc"] {
        let is_help = words.iter().any(|word| word == "-h" || word == "--help");
        if is_help {
            print(&format!(
                "{}\n\nRun by xapi: {} --xmlrpc, with the XML-RPC call on standard input.\n",
                extension.usage, extension.name
            ));
            return ExitCode::SUCCESS;
        }
        complain(&format!("usage: {} --xmlrpc\n{}", extension.name, extension.usage));
        return 2.into();
    }
    let mut text = String::new();
    let result = io::stdin()
        .lock()
        .read_to_string(&mut text)
        .map_err(|error| Failure::of(&error))
        .and_then(|_| parameters(&text))
        .and_then(|parameters| {
            // Called by `Host.call_extension` there is but one string.
            let words: Vec<String> =
                parameters.iter().skip(1).flat_map(|text| text.split_whitespace()).map(str::to_owned).collect();
            (extension.run)(&Host::of_executable()?, &words)
        });
    print(&response(&result));
    ExitCode::SUCCESS
}

fn chosen(host: &Host, sr: Option<&String>) -> Result<Vec<Sr>, Failure> {
    match sr {
        Some(sr) => Ok(vec![host.attached_as(sr)?]),
        None => host.attached(),
    }
}

fn told(result: Result<(), String>) -> Result<(), Failure> {
    result.map_err(|why| Failure::numbered(Number::General, why))
}

fn status(host: &Host, words: &[String]) -> Result<String, Failure> {
    let mut answer = serde_json::Map::new();
    for sr in chosen(host, words.first())? {
        let of_one = match worker::status(host, &sr) {
            Ok((status, repository)) => serde_json::json!({ "state": status.state, "repository": repository }),
            Err(why) => serde_json::json!({ "error": why }),
        };
        answer.insert(sr.uuid().to_string(), of_one);
    }
    Ok(serde_json::Value::Object(answer).to_string())
}

fn set_rate(host: &Host, words: &[String]) -> Result<String, Failure> {
    let refused = |detail: &str| Failure::numbered(Number::BadRequest, detail);
    let (sr, rate) = match words {
        [rate] => (None, rate),
        [sr, rate] => (Some(sr), rate),
        _ => return Err(refused("give a rate, or a repository and a rate")),
    };
    let rate = match rate.as_str() {
        "none" => None,
        rate => {
            let bytes = size::parse(rate).map_err(|error| refused(&error.to_string()))?;
            Some(NonZeroU64::new(bytes.0).ok_or_else(|| refused("nothing would move at that rate"))?)
        }
    };
    for sr in chosen(host, sr)? {
        told(worker::tell(host, &sr, &Command::SetRate { bytes_per_second: Some(rate), in_flight: None }))?;
    }
    Ok(String::new())
}

/// Reads the parameters of an XML-RPC call, all of them as text.
fn parameters(xml: &str) -> Result<Vec<String>, Failure> {
    let refused =
        |error: &dyn std::fmt::Display| Failure::numbered(Number::BadRequest, format!("no XML-RPC call: {error}"));
    let mut reader = Reader::from_str(xml);
    let (mut found, mut path, mut text, mut is_call) = (Vec::new(), Vec::new(), String::new(), false);
    loop {
        match reader.read_event().map_err(|error| refused(&error))? {
            Event::Start(tag) => {
                is_call |= path.is_empty() && tag.name().as_ref() == "methodCall";
                // What stands between tags is no value.
                text.clear();
                path.push(tag.name().as_ref().to_owned());
            }
            Event::Text(part) => text.push_str(&part),
            Event::CData(part) => text.push_str(&part),
            Event::GeneralRef(name) => {
                let entity = format!("&{};", &*name);
                text.push_str(&quick_xml::escape::unescape(&entity).map_err(|error| refused(&error))?);
            }
            Event::End(tag) => {
                path.pop();
                if tag.name().as_ref() == "value" && path.last().is_some_and(|above| above == "param") {
                    found.push(std::mem::take(&mut text));
                }
            }
            Event::Eof if is_call && path.is_empty() => return Ok(found),
            Event::Eof => return Err(refused(&"it does not end")),
            _ => {}
        }
    }
}

/// Tells whether a character may stand in a document at all, escaped or not. Source: XML 1.0, production 2.
fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

/// XenAPI's form of an answer: a struct with a status.
fn response(result: &Result<String, Failure>) -> String {
    let string = |text: &str| format!("<value>{}</value>", escape(text.replace(|c| !is_xml(c), "\u{fffd}")));
    let member = |name: &str, value: &str| format!("<member><name>{name}</name>{value}</member>");
    let members = match result {
        Ok(value) => member("Status", &string("Success")) + &member("Value", &string(value)),
        Err(failure) => {
            let words: String =
                std::iter::once(&failure.code).chain(&failure.parameters).map(|text| string(text)).collect();
            let array = format!("<value><array><data>{words}</data></array></value>");
            member("Status", &string("Failure")) + &member("ErrorDescription", &array)
        }
    };
    format!(
        "<?xml version=\"1.0\"?>\n<methodResponse><params><param><value><struct>{members}</struct></value></param>\
         </params></methodResponse>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_text_in_both_forms() {
        let call = "<?xml version='1.0'?>\n<methodCall>\n <methodName>VHD.status</methodName>\n <params>\n  <param>\n   \
                    <value><string>OpaqueRef:1</string></value>\n  </param>\n  <param><value>a &lt;b&gt; &#65;</value></param>\
                    <param><value><string/></value></param>\n </params>\n</methodCall>\n";
        assert_eq!(parameters(call).unwrap(), ["OpaqueRef:1", "a <b> A", ""]);
        assert_eq!(parameters("<methodCall><methodName>x</methodName></methodCall>").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for wrong in ["", "hello", "<methodCall>", "<methodCall><params></methodCall>", "<other/>", "{}"] {
            assert_eq!(parameters(wrong).unwrap_err().code, "SR_BACKEND_FAILURE_143", "{wrong:?}");
        }
    }

    #[test]
    fn answers_are_escaped() {
        let text = response(&Ok("{\"a\":\"<&>\"}".into()));
        assert!(text.contains("<name>Status</name><value>Success</value>"), "{text}");
        assert!(text.contains("&lt;&amp;&gt;"), "{text}");
        let text = response(&Err(Failure::sr_not_attached("x")));
        assert!(
            text.contains(
                "<data><value>SR_BACKEND_FAILURE</value><value>Sr_not_attached</value><value>x</value></data>"
            )
        );
    }
}
