//! What goes over the wire, checked against the contract alone: members that must be there, none that is `null`, none
//! that nobody knows, whole numbers without a fraction.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::contract::Type;

type Members = &'static [(&'static str, Type)];

const QUERY_RESULT: Members = &[
    ("plugin", Type::Text),
    ("name", Type::Text),
    ("description", Type::Text),
    ("vendor", Type::Text),
    ("copyright", Type::Text),
    ("version", Type::Text),
    ("required_api_version", Type::Text),
    ("features", Type::List(&Type::Text)),
    ("configuration", Type::Map),
    ("required_cluster_stack", Type::List(&Type::Text)),
];
const SR_STAT: Members = &[
    ("sr", Type::Text),
    ("name", Type::Text),
    ("description", Type::Text),
    ("free_space", Type::Integer),
    ("total_space", Type::Integer),
    ("datasources", Type::List(&Type::Text)),
    ("clustered", Type::Boolean),
    ("health", Type::Health),
];
const VOLUME: Members = &[
    ("key", Type::Text),
    ("name", Type::Text),
    ("description", Type::Text),
    ("read_write", Type::Boolean),
    ("sharable", Type::Boolean),
    ("virtual_size", Type::Integer),
    ("physical_utilisation", Type::Integer),
    ("uri", Type::List(&Type::Text)),
    ("keys", Type::Map),
];
const PROBE_RESULT: Members = &[("configuration", Type::Map), ("complete", Type::Boolean), ("extra_info", Type::Map)];
const BLOCK_LIST: Members = &[("blocksize", Type::Integer), ("ranges", Type::List(&Type::Pair(&Type::Integer)))];
const CHANGED_BLOCKS: Members = &[("granularity", Type::Integer), ("bitmap", Type::Base64)];

/// Checks that a value is of a type.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(kind: Type, value: &Value) -> Result<(), String> {
    let list_of = |kind: &Type| value.as_array().is_some_and(|list| list.iter().all(|item| check(*kind, item).is_ok()));
    let text_is = |good: fn(&str) -> bool| value.as_str().is_some_and(good);
    let fits = match kind {
        Type::Text => value.is_string(),
        // `1.0` and `1e3` are read as fractions.
        Type::Integer => value.is_i64(),
        Type::Boolean => value.is_boolean(),
        Type::Unit => value.is_null(),
        Type::Map => value.as_object().is_some_and(|map| map.values().all(Value::is_string)),
        Type::Pair(of) => list_of(of) && value.as_array().is_some_and(|pair| pair.len() == 2),
        Type::Base64 => text_is(|text| STANDARD.decode(text).is_ok()),
        Type::Health => ["Healthy", "Recovering", "Unreachable", "Unavailable"]
            .iter()
            .any(|tag| value.get(1).is_some_and(|text| *value == json!([tag, text]) && text.is_string())),
        Type::Content => {
            ["Data", "CBT_Metadata", "Data_and_CBT_Metadata"].iter().any(|tag| *value == json!([tag, null]))
        }
        Type::List(of) => {
            let list = value.as_array().ok_or_else(|| format!("no list: {value}"))?;
            return list.iter().try_for_each(|item| check(*of, item));
        }
        Type::QueryResult => return record(value, QUERY_RESULT, &[]),
        Type::SrStat => return record(value, SR_STAT, &[("uuid", Type::Text)]),
        Type::Volume => {
            let optional = &[("uuid", Type::Text), ("volume_type", Type::Content), ("cbt_enabled", Type::Boolean)];
            return record(value, VOLUME, optional);
        }
        Type::ProbeResult => {
            record(value, PROBE_RESULT, &[("sr", Type::SrStat)])?;
            return probe_rules(value);
        }
        Type::BlockList => return record(value, BLOCK_LIST, &[]),
        Type::ChangedBlocks => return record(value, CHANGED_BLOCKS, &[]),
    };
    if fits { Ok(()) } else { Err(format!("no {kind:?}: {value}")) }
}

/// What xapi's storage daemon refuses of a result of probing.
fn probe_rules(found: &Value) -> Result<(), String> {
    let has_uuid = found["configuration"].get("sr_uuid").is_some();
    match (has_uuid, found["complete"] == true, found.get("sr").is_some()) {
        (true, false, _) => Err(format!("`sr_uuid`, but not complete: {found}")),
        (false, _, true) => Err(format!("`sr`, but no `sr_uuid`: {found}")),
        _ => Ok(()),
    }
}

fn record(value: &Value, mandatory: Members, optional: Members) -> Result<(), String> {
    let mut members: Map<String, Value> = value.as_object().ok_or_else(|| format!("no record: {value}"))?.clone();
    for (name, kind) in mandatory {
        let member = members.remove(*name).ok_or_else(|| format!("{name} is missing: {value}"))?;
        check(*kind, &member).map_err(|error| format!("{name}: {error}"))?;
    }
    for (name, kind) in optional {
        if let Some(member) = members.remove(*name) {
            check(*kind, &member).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    match members.keys().next() {
        None => Ok(()),
        Some(unknown) => Err(format!("{unknown} is nobody's member: {value}")),
    }
}

/// What a failed call answers: the code and its parameters.
///
/// # Errors
/// What is wrong with its form.
pub(crate) fn error(value: &Value) -> Result<(String, Vec<String>), String> {
    let backtrace: Members =
        &[("error", Type::Text), ("files", Type::List(&Type::Text)), ("lines", Type::List(&Type::Integer))];
    check(Type::Text, &value["code"])?;
    check(Type::List(&Type::Text), &value["params"])?;
    record(&value["backtrace"], backtrace, &[])?;
    let texts = value["params"].as_array().into_iter().flatten();
    let code = value["code"].as_str().unwrap_or_default().to_owned();
    Ok((code, texts.filter_map(|text| text.as_str().map(str::to_owned)).collect()))
}

#[test]
fn what_the_daemon_refuses_is_refused() {
    let volume = json!({
        "key": "k", "name": "", "description": "", "read_write": true, "sharable": false, "virtual_size": 1,
        "physical_utilisation": 1, "uri": ["a:b"], "keys": {},
    });
    check(Type::Volume, &volume).unwrap();
    for (name, wrong) in [
        ("uuid", json!(null)),
        ("volume_type", json!("Data")),
        ("virtual_size", json!(1.0)),
        ("uri", json!("a:b")),
        ("keys", json!([])),
        ("keys", json!({"a": 1})),
        ("other", json!("x")),
    ] {
        let mut volume = volume.clone();
        volume[name] = wrong;
        check(Type::Volume, &volume).unwrap_err();
    }
    check(Type::Health, &json!(["Healthy", ""])).unwrap();
    for wrong in [json!("Healthy"), json!(["Healthy"]), json!(["Healthy", null]), json!(["Fine", ""])] {
        check(Type::Health, &wrong).unwrap_err();
    }
    for wrong in [json!(null), json!([["sr_uuid", "x"]])] {
        check(Type::Map, &wrong).unwrap_err();
    }
    for wrong in [json!({}), json!(""), json!([]), json!(true)] {
        check(Type::Unit, &wrong).unwrap_err();
    }
    let incomplete = json!({"configuration": {"sr_uuid": "x"}, "complete": false, "extra_info": {}});
    check(Type::ProbeResult, &incomplete).unwrap_err();
    error(&json!({"code": "x", "params": [], "backtrace": {}})).unwrap_err();
    error(&json!({"code": "x", "params": [1], "backtrace": {"error": "", "files": [], "lines": []}})).unwrap_err();
}
