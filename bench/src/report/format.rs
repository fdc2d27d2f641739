//! How numbers are written.

use crate::statistics::Summary;

/// A ratio: two decimals, fewer where they say nothing.
pub(super) fn ratio(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 9.995 => format!("{ratio:.2}"),
        ratio if ratio < 99.95 => format!("{ratio:.1}"),
        ratio if ratio < 999.5 => format!("{ratio:.0}"),
        _ => ">999".to_owned(),
    }
}

/// A ratio with its spread: `0.41 (0.38–0.44)`.
pub(super) fn spread(summary: &Summary) -> String {
    format!("{} ({}–{})", ratio(summary.median), ratio(summary.min), ratio(summary.max))
}

/// A figure with about three significant digits.
pub(crate) fn quantity(number: f64) -> String {
    match number.abs() {
        _ if number == 0.0 => "0".to_owned(),
        size if size < 0.001 => "<0.001".to_owned(),
        size if size < 0.995 => format!("{number:.3}"),
        size if size < 9.995 => format!("{number:.2}"),
        size if size < 99.95 => format!("{number:.1}"),
        _ => grouped(number),
    }
}

/// 12345.6 as `12 346`.
fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = if number < 0.0 { "-".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// How many workers a proxy has; 0 stands for its own choice.
pub(super) fn workers(workers: usize) -> String {
    match workers {
        0 => "the default number of workers".to_owned(),
        1 => "1 worker".to_owned(),
        _ => format!("{workers} workers"),
    }
}

/// A time in µs, with the unit that fits.
pub(crate) fn time(us: f64) -> String {
    match us {
        us if us >= 999_500.0 => format!("{} s", quantity(us / 1e6)),
        us if us >= 999.5 => format!("{} ms", quantity(us / 1e3)),
        us => format!("{} µs", quantity(us)),
    }
}

/// A round number on an axis: without decimals that say nothing.
pub(super) fn tick(written: &str) -> String {
    let (number, unit) = written.split_at(written.find(char::is_alphabetic).unwrap_or(written.len()));
    let number = number.trim_end();
    let short =
        if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number };
    if unit.is_empty() { short.to_owned() } else { format!("{short} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let numbers = [0.0, 0.0004, 0.0314, 2.34567, 23.4567, 234.567, 1_234_567.0, -12.34, -4_321.0];
        let shown = ["0", "<0.001", "0.031", "2.35", "23.5", "235", "1 234 567", "-12.3", "-4 321"];
        assert_eq!(numbers.map(quantity), shown);
        assert_eq!([0.001, 0.123, 9.999, 99.99, 1e9].map(ratio), ["0.00", "0.12", "10.0", "100", ">999"]);
        assert_eq!([0, 1, 2].map(workers), ["the default number of workers", "1 worker", "2 workers"]);
        assert_eq!([0.5, 120.0, 1_500.0, 2e6].map(time), ["0.500 µs", "120 µs", "1.50 ms", "2.00 s"]);
        let ticks = ["50.0 ms", "0.500", "1.50 ms", "200 µs", "0", "1 000", "2.00"].map(tick);
        assert_eq!(ticks, ["50 ms", "0.5", "1.5 ms", "200 µs", "0", "1 000", "2"]);
        let summary = Summary { median: 0.412, min: 0.4, max: 12.34, runs: 3 };
        assert_eq!(spread(&summary), "0.41 (0.40–12.3)");
    }
}
