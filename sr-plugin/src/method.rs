//! Methods: what they are called, what they take, and how their arguments are read in both forms of a call.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::failure::{Failure, Number};
use crate::host::Host;

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A whole number of 64 bits.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// Strings by name; in the human form `--configuration NAME VALUE`, as often as needed.
    Configuration,
}

/// One parameter of a method.
#[derive(Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it means.
    pub about: &'static str,
}

/// Every method's first parameter.
const DBG: Parameter = Parameter { name: "dbg", kind: Kind::Text, about: "Debug context, which goes to the log" };

/// One method of an interface.
#[derive(Debug)]
pub struct Method {
    /// Interface and method, as the executable is called.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// What it takes besides the debug context.
    pub parameters: &'static [Parameter],
    /// Does it.
    pub run: fn(&Host, Arguments) -> Result<Value, Failure>,
}

/// The arguments of a call: all there, all of the right kind.
#[derive(Clone, Debug)]
pub struct Arguments(Map<String, Value>);

impl Arguments {
    /// The debug context.
    pub fn dbg(&self) -> &str {
        self.0.get(DBG.name).and_then(Value::as_str).unwrap_or_default()
    }

    /// Gives them the method's own form.
    ///
    /// # Errors
    /// A number that is out of range.
    pub fn read<T: DeserializeOwned>(self) -> Result<T, Failure> {
        serde_json::from_value(Value::Object(self.0)).map_err(|error| Failure::numbered(Number::BadRequest, error))
    }
}

/// Makes a result into what is answered; nothing is `null`.
pub fn answer<T: Serialize>(result: T) -> Result<Value, Failure> {
    serde_json::to_value(result).map_err(|error| Failure::of(&error))
}

/// Why the arguments of the human form are refused: the text for standard error.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(pub String);

impl Method {
    fn all_parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&DBG).chain(self.parameters)
    }

    fn positional(&self) -> impl Iterator<Item = &Parameter> {
        self.all_parameters().filter(|parameter| parameter.kind != Kind::Configuration)
    }

    /// Reads the arguments of the JSON form: one object. Members that are not known are ignored.
    ///
    /// # Errors
    /// What is no object; a member that is missing or of another kind.
    pub fn arguments_of_json(&self, text: &[u8]) -> Result<Arguments, Failure> {
        let refused = |text: String| Failure::numbered(Number::BadRequest, format!("{}: {text}", self.name));
        let value: Value = serde_json::from_slice(text).map_err(|error| refused(format!("no JSON: {error}")))?;
        let Value::Object(mut given) = value else { return Err(refused("the arguments are no object".into())) };
        let mut arguments = Map::new();
        for Parameter { name, kind, .. } in self.all_parameters() {
            let value = given.remove(*name).ok_or_else(|| refused(format!("argument `{name}` is missing")))?;
            if !kind.fits(&value) {
                return Err(refused(format!("argument `{name}` is not {}: {value}", kind.described())));
            }
            arguments.insert((*name).into(), value);
        }
        Ok(Arguments(arguments))
    }

    /// Reads the arguments of the human form: in the order of the parameters, and options.
    ///
    /// # Errors
    /// Too few or too many, one of another kind, an option that is not known.
    pub fn arguments_of_words(&self, words: &[String]) -> Result<Arguments, UsageError> {
        let mut positional = self.positional();
        let mut arguments = Map::new();
        let mut configuration = BTreeMap::new();
        let takes_configuration = self.parameters.iter().any(|parameter| parameter.kind == Kind::Configuration);
        let (mut words, mut only_values) = (words.iter(), false);
        while let Some(word) = words.next() {
            if !only_values && word == "--" {
                only_values = true;
            } else if !only_values && takes_configuration && word == "--configuration" {
                let (Some(name), Some(value)) = (words.next(), words.next()) else {
                    return Err(UsageError("--configuration takes a name and a value".into()));
                };
                configuration.insert(name.clone(), Value::String(value.clone()));
            } else if !only_values && word.starts_with("--") {
                return Err(UsageError(format!("unknown option {word}")));
            } else {
                let parameter = positional.next();
                let parameter = parameter.ok_or_else(|| UsageError(format!("one argument too many: {word}")))?;
                let value = parameter.kind.of_word(word);
                let value = value.ok_or_else(|| {
                    UsageError(format!("{}: not {}: {word}", parameter.name, parameter.kind.described()))
                })?;
                arguments.insert(parameter.name.into(), value);
            }
        }
        if let Some(missing) = positional.next() {
            return Err(UsageError(format!("argument {} is missing", missing.name.to_uppercase())));
        }
        for parameter in self.parameters.iter().filter(|parameter| parameter.kind == Kind::Configuration) {
            arguments.insert(parameter.name.into(), Value::Object(configuration.clone().into_iter().collect()));
        }
        Ok(Arguments(arguments))
    }

    /// How it is called, on one line.
    pub fn usage(&self) -> String {
        let words = self.all_parameters().map(|parameter| match parameter.kind {
            Kind::Configuration => " [--configuration NAME VALUE]...".to_owned(),
            _ => format!(" {}", parameter.name.to_uppercase()),
        });
        format!("usage: {} [-h] [-j]{}", self.name, words.collect::<String>())
    }

    /// All about it, for a person.
    pub fn help(&self) -> String {
        let mut text = format!("{}\n\n{}\n\narguments:\n", self.usage(), self.about);
        for parameter in self.all_parameters() {
            let name = match parameter.kind {
                Kind::Configuration => "--configuration NAME VALUE".into(),
                _ => parameter.name.to_uppercase(),
            };
            text.push_str(&format!("  {name:<26}  {}, {}\n", parameter.about, parameter.kind.described()));
        }
        text.push_str("\noptions:\n  -h, --help                  Print this\n");
        text.push_str("  -j, --json                  Read the arguments from standard input as one JSON object\n");
        text.push_str("\nThe result is printed as JSON. Exit codes: 0 done, 1 failed, 2 wrong usage.\n");
        text
    }
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Integer => value.is_i64(),
            Self::Boolean => value.is_boolean(),
            Self::Configuration => value.as_object().is_some_and(|map| map.values().all(Value::is_string)),
        }
    }

    fn of_word(self, word: &str) -> Option<Value> {
        match self {
            Self::Text => Some(word.into()),
            Self::Integer => word.parse::<i64>().ok().map(Value::from),
            Self::Boolean => word.to_ascii_lowercase().parse::<bool>().ok().map(Value::from),
            Self::Configuration => None,
        }
    }

    fn described(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Integer => "a whole number",
            Self::Boolean => "true or false",
            Self::Configuration => "strings by name",
        }
    }
}
