//! Decoding of hexadecimal text: keys and info hashes.

use tsubame_storage::InfoHash;

/// Decodes exactly `N` pairs of hexadecimal digits. Returns `None` for any other text.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
    }
    Some(bytes)
}

/// Parses an info hash of version 1, or one of version 2, which is truncated to 20 bytes (BEP 52).
pub fn parse_info_hash(text: &str) -> Option<InfoHash> {
    let v2 = || decode::<32>(text)?.first_chunk().copied();
    decode(text).or_else(v2).map(InfoHash)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_exact_number_of_digit_pairs_is_decoded() {
        assert_eq!(super::decode("00fFa1"), Some([0, 255, 0xa1]));
        for invalid in ["00ff", "00ffa1a", "00ffa1aa", "00ffg1", "+0ffa1", "é0ffa"] {
            assert_eq!(super::decode::<3>(invalid), None, "{invalid}");
        }
    }
}
