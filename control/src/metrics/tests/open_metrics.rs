//! A strict reader of OpenMetrics text (version 1.0): what is not allowed fails the test.

use std::collections::BTreeSet;

/// A family of samples.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) unit: String,
    pub(crate) help: String,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

/// Reads an exposition.
pub(crate) fn read(text: &str) -> Vec<Family> {
    let body = text.strip_suffix("# EOF\n").expect("the text ends with # EOF");
    assert!(!body.contains("# EOF"), "there is one end");
    let (mut families, mut seen) = (Vec::<Family>::new(), BTreeSet::new());
    for line in body.lines() {
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let [keyword, name, value] = std::array::from_fn(|_| words.next().expect("metadata is whole"));
            if families.last().is_none_or(|family| family.name != name) {
                assert!(is_name(name, true), "{name} is a name");
                assert!(families.iter().all(|family| family.name != name), "{name} is in one piece");
                families.push(Family { name: name.to_owned(), ..Family::default() });
            }
            let family = families.last_mut().expect("there is one");
            assert!(family.samples.is_empty(), "{line}: metadata stands before the samples");
            let place = match keyword {
                "TYPE" => &mut family.kind,
                "UNIT" => &mut family.unit,
                "HELP" => &mut family.help,
                other => panic!("{other} is no metadata"),
            };
            assert!(place.is_empty() && !value.is_empty(), "{line}: once, and not empty");
            value.clone_into(place);
            continue;
        }
        let family = families.last_mut().expect("samples have a family");
        assert!(seen.insert(identity(line)), "{line} is there once");
        let sample = sample(line, family);
        family.samples.push(sample);
    }
    for family in &families {
        assert!(!family.samples.is_empty(), "{} has samples", family.name);
        assert!(family.unit.is_empty() || family.name.ends_with(&format!("_{}", family.unit)), "{family:?}");
    }
    families
}

/// Name and labels.
fn identity(line: &str) -> String {
    line.rsplit_once(' ').expect("a sample has a value").0.to_owned()
}

fn sample(line: &str, family: &Family) -> Sample {
    let end = line.find(['{', ' ']).expect("a sample has a value");
    let (name, mut rest) = line.split_at(end);
    let suffix = name.strip_prefix(&family.name).expect("a sample has the name of its family");
    let suffixes: &[&str] = match family.kind.as_str() {
        "counter" => &["_total"],
        "gauge" => &[""],
        "histogram" => &["_sum", "_count", "_bucket"],
        other => panic!("{}: no type {other} is expected", family.name),
    };
    assert!(suffixes.contains(&suffix), "{name} in a {}", family.kind);
    let mut labels = Vec::<(String, String)>::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (name, after) = rest.split_once("=\"").expect("a label has a value");
            assert!(is_name(name, false), "{name} is a label");
            assert!(labels.iter().all(|(other, _)| other != name), "{name} is there once");
            let (value, after) = quoted(after);
            labels.push((name.to_owned(), value));
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = after.strip_prefix('}').expect("labels end");
                    break;
                }
            }
        }
    }
    let value: f64 = rest.strip_prefix(' ').expect("one space").parse().expect("a number");
    assert!(family.kind == "gauge" || value >= 0.0);
    assert_eq!(suffix == "_bucket", labels.iter().any(|(name, _)| name == "le"), "{line}");
    Sample { labels, value }
}

/// The text up to its closing quote, unescaped, and what follows.
fn quoted(text: &str) -> (String, &str) {
    let (mut value, mut characters) = (String::new(), text.chars());
    loop {
        match characters.next().expect("a quote is closed") {
            '"' => return (value, characters.as_str()),
            '\\' => value.push(match characters.next() {
                Some('n') => '\n',
                Some(c @ ('"' | '\\')) => c,
                other => panic!("{other:?} is not escaped"),
            }),
            c => value.push(c),
        }
    }
}

fn is_name(name: &str, colons: bool) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || colons && c == ':';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}
