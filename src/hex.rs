//! Hexadecimal digits, as keys and info hashes are written.

/// The bytes that a text of exactly so many pairs of digits stands for
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

#[cfg(test)]
mod tests {
    #[test]
    fn digits_are_read_in_pairs_and_nothing_else_is() {
        assert_eq!(super::decode("00fFa1"), Some([0, 255, 0xa1]));
        for none in ["00ff", "00ffa1a", "00ffa1aa", "00ffg1", "+0ffa1", "é0ffa"] {
            assert_eq!(super::decode::<3>(none), None, "{none}");
        }
    }
}
