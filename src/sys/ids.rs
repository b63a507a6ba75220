//! Random identifiers.

/// `N` random bytes from the kernel.
///
/// # Panics
/// If the kernel has no random source: nothing this daemon does would be safe then.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).expect("the kernel's random source must work");
    bytes
}

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// 32 random hexadecimal digits in the shape of a UUID v4 without dashes.
pub fn uuid_hex() -> String {
    hex(&uuid_bytes(random_bytes::<16>()))
}

/// Sets version 4 and the variant bits of RFC 9562 in 16 random bytes.
/// A random (version 4) UUID in its usual form, lower case.
pub fn uuid() -> String {
    let hex = uuid_hex();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

pub fn uuid_bytes(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_version_four_and_differ() {
        let (a, b) = (uuid_hex(), uuid_hex());
        assert_eq!(a.len(), 32);
        assert_eq!(&a[12..13], "4");
        assert_ne!(a, b);
    }
}
