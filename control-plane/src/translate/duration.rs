//! Durations as the Gateway API writes them (GEP-2257): `1h30m`, `10s`, `250ms`.

use std::time::Duration;

use outrigger_core::error::FieldError;
use outrigger_core::policy::bounds::{DURATION_DIGITS, DURATION_PARTS};

/// `([0-9]{1,5}(h|m|s|ms)){1,4}`; zero is a duration, too.
pub(super) fn parse(text: &str) -> Result<Duration, FieldError> {
    let wrong = || {
        FieldError::here(format!(
            "{text:?} is not a duration: write up to four numbers of at most five digits with the \
             units h, m, s or ms, as in 1m30s or 250ms"
        ))
    };
    let mut total = Duration::ZERO;
    let mut rest = text;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let unit = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(unit);
        parts += 1;
        if digits > DURATION_DIGITS || parts > DURATION_PARTS {
            return Err(wrong());
        }
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total += match unit {
            "h" => Duration::from_secs(number * 60 * 60),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(wrong()),
        };
        rest = after;
    }
    if parts == 0 { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_the_gateway_api() {
        for (text, millis) in [
            ("0s", 0),
            ("0h0m0s0ms", 0),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("10s", 10_000),
            ("1s500ms", 1_500),
            ("250ms", 250),
            ("99999ms", 99_999),
            ("500ms1s", 1_500),
            ("1s1s", 2_000),
            ("99999h99999h99999h99999h", 4 * 99_999 * 3_600_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "1",
            "s",
            "-1s",
            "+1s",
            "1.5s",
            "1d",
            "1us",
            "1ns",
            "1 s",
            " 1s",
            "1s ",
            "1S",
            "100000s",
            "1h1m1s1ms1ms",
            "1sm",
            "1s500",
            "१s",
            "1s\n",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.problem.starts_with(&format!("{text:?} is not a duration")), "{error}");
        }
    }
}
