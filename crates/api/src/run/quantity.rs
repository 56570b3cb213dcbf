//! Amounts as Kubernetes writes them: `1000m` of a processor, `512Mi` of memory.

/// A processor amount in thousandths: `1`, `0.5`, `500m`.
pub(crate) fn processor_millis(text: &str) -> Option<u32> {
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse().ok()?,
        None => {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            if fraction.len() > 3 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
                return None;
            }
            let whole: u32 = whole.parse().ok()?;
            let fraction: u32 = format!("{fraction:0<3}").parse().ok()?;
            whole.checked_mul(1000)?.checked_add(fraction)?
        }
    };
    (millis > 0).then_some(millis)
}

/// A memory amount in bytes: `512Mi`, `1G`, `1073741824`, `0.5Gi`.
pub(crate) fn memory_bytes(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, u64); 9] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("K", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let found =
        SUFFIXES.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)));
    let (number, unit) = found.unwrap_or((text, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 6 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let millionths: u128 = format!("{fraction:0<6}").parse().ok()?;
    let of_fraction = u64::try_from(millionths * u128::from(unit) / 1_000_000).ok()?;
    let bytes = whole.checked_mul(unit)?.checked_add(of_fraction)?;
    (bytes > 0).then_some(bytes)
}

/// A duration of whole or fractional seconds, as proto3 JSON writes it: `300s`, `0.5s`.
pub(crate) fn seconds(text: &str) -> Option<u32> {
    let (whole, fraction) = {
        let number = text.strip_suffix('s')?;
        number.split_once('.').unwrap_or((number, ""))
    };
    let is_whole = fraction.bytes().all(|digit| digit == b'0');
    whole.parse().ok().filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_writes_them() {
        for (text, millis) in [
            ("1", Some(1000)),
            ("1000m", Some(1000)),
            ("0.5", Some(500)),
            (".08", None),
            ("0.08", Some(80)),
            ("2.0", Some(2000)),
            ("0", None),
            ("-1", None),
            ("1.2345", None),
            ("x", None),
            ("99999999999", None),
        ] {
            assert_eq!(processor_millis(text), millis, "{text}");
        }
        for (text, bytes) in [
            ("512Mi", Some(512 << 20)),
            ("1Gi", Some(1 << 30)),
            ("1G", Some(1_000_000_000)),
            ("0.5Gi", Some(512 << 20)),
            ("1024", Some(1024)),
            ("0Mi", None),
            ("Mi", None),
            ("1Xi", None),
            ("99999999999Ti", None),
        ] {
            assert_eq!(memory_bytes(text), bytes, "{text}");
        }
        assert_eq!(seconds("300s"), Some(300));
        assert_eq!(seconds("300"), None);
        assert_eq!(seconds("1.5s"), None);
    }
}
