//! Quantities as Kubernetes writes them, as far as two of them must be compared.

/// The number that a quantity stands for, as in `10m`, `1.5`, `64Mi` or `1e3`. None: it is none, or below zero.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => 10f64.powi(suffix.strip_prefix(['e', 'E'])?.parse::<i8>().ok()?.into()),
    };
    Some(number * factor).filter(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, value) in [("10m", 0.01), ("1.5", 1.5), ("1Ki", 1024.0), ("2e3", 2000.0)] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
        for bad in ["", "-1", "1 Gi", "1Gb", "lots", "1e", ".", "1.2.3"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
