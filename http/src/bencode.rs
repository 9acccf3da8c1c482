//! Bencode (BEP 3): writers for the forms that replies need, and a parser as strict as the strictest client.
//!
//! Keys of a dictionary must be sorted. Callers that write a dictionary must write its keys in order; the parser
//! refuses unsorted keys.

use thiserror::Error;

/// Appends a byte string.
pub fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    decimal(out, bytes.len() as u64);
    out.push(b':');
    out.extend_from_slice(bytes);
}

/// Appends an integer.
pub fn write_integer(out: &mut Vec<u8>, value: u64) {
    out.push(b'i');
    decimal(out, value);
    out.push(b'e');
}

/// Appends a key and its integer value.
pub fn write_entry(out: &mut Vec<u8>, key: &str, value: u64) {
    write_bytes(out, key.as_bytes());
    write_integer(out, value);
}

/// Appends a number in decimal digits.
pub(crate) fn decimal(out: &mut Vec<u8>, value: u64) {
    let mut digits = [0; 20];
    let mut rest = value;
    let mut len = 0;
    for digit in digits.iter_mut().rev() {
        // The conversion cannot fail: a digit fits a byte.
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        len += 1;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.split_at(digits.len() - len).1);
}

/// Maximum depth of nested values. The innermost string or integer counts as a level.
const DEPTH_MAX: usize = 16;

/// A parsed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An integer: `i5e`.
    Integer(i64),
    /// A byte string: `4:spam`.
    Bytes(&'a [u8]),
    /// A list: `l...e`.
    List(Vec<Self>),
    /// A dictionary: `d...e`, with its entries sorted by key.
    Dictionary(Vec<(&'a [u8], Self)>),
}

/// Reason for which bytes are not valid bencode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BencodeError {
    /// The bytes end within a value.
    #[error("ends within a value")]
    Truncated,
    /// More bytes follow the value.
    #[error("has bytes after its end")]
    TrailingBytes,
    /// The bytes have none of the four forms, a number is not written in its canonical form, or values are nested too
    /// deeply.
    #[error("malformed")]
    Malformed,
    /// A key of a dictionary is not greater than the key before it.
    #[error("has keys that are not sorted")]
    Unsorted,
}

impl<'a> Value<'a> {
    /// Parses one value, which must use all bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BencodeError> {
        let (value, rest) = Self::read(bytes, DEPTH_MAX)?;
        if rest.is_empty() { Ok(value) } else { Err(BencodeError::TrailingBytes) }
    }

    /// Parses one value that may contain `depth` levels; returns it with the bytes after it.
    fn read(bytes: &'a [u8], depth: usize) -> Result<(Self, &'a [u8]), BencodeError> {
        let (first, mut rest) = bytes.split_first().ok_or(BencodeError::Truncated)?;
        let depth = depth.checked_sub(1).ok_or(BencodeError::Malformed)?;
        match first {
            b'i' => {
                let (number, rest) = number(rest, b'e')?;
                Ok((Self::Integer(number), rest))
            }
            b'0'..=b'9' => byte_string(bytes).map(|(value, rest)| (Self::Bytes(value), rest)),
            b'l' => {
                let mut values = Vec::new();
                while rest.first() != Some(&b'e') {
                    let (value, after) = Self::read(rest, depth)?;
                    values.push(value);
                    rest = after;
                }
                Ok((Self::List(values), rest.split_at(1).1))
            }
            b'd' => {
                let mut entries: Vec<(&[u8], Self)> = Vec::new();
                while rest.first() != Some(&b'e') {
                    let (key, after) = byte_string(rest)?;
                    let (value, after) = Self::read(after, depth)?;
                    if entries.last().is_some_and(|(last, _)| *last >= key) {
                        return Err(BencodeError::Unsorted);
                    }
                    entries.push((key, value));
                    rest = after;
                }
                Ok((Self::Dictionary(entries), rest.split_at(1).1))
            }
            _ => Err(BencodeError::Malformed),
        }
    }

    /// Returns the value of a key; `None` if this is not a dictionary or lacks the key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Dictionary(entries) = self else { return None };
        entries.iter().find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value)
    }

    /// Returns the integer; `None` for other values.
    pub fn integer(&self) -> Option<i64> {
        if let Self::Integer(number) = self { Some(*number) } else { None }
    }

    /// Returns the byte string; `None` for other values.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }
}

/// Returns the encoded bytes of the value of a key in a dictionary.
///
/// Returns `None` if the key is missing, or if the bytes up to the end of its value cannot be parsed. Keys may be
/// unsorted, as some programs that create torrents do not sort them.
pub fn raw_value<'a>(dictionary: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut rest = dictionary.strip_prefix(b"d")?;
    while rest.first() != Some(&b'e') {
        let (name, value) = byte_string(rest).ok()?;
        let after = skip(value)?;
        if name == key {
            return value.get(..value.len() - after.len());
        }
        rest = after;
    }
    None
}

/// Returns the bytes after a value; `None` if its end cannot be found. Keys of nested dictionaries are not checked.
fn skip(bytes: &[u8]) -> Option<&[u8]> {
    let (mut rest, mut depth) = (bytes, 0_usize);
    loop {
        let (first, after) = rest.split_first()?;
        rest = match first {
            b'i' => number(after, b'e').ok()?.1,
            b'l' | b'd' => {
                depth += 1;
                after
            }
            b'e' => {
                depth = depth.checked_sub(1)?;
                after
            }
            _ => byte_string(rest).ok()?.1,
        };
        if depth == 0 {
            return Some(rest);
        }
    }
}

/// Parses a byte string; returns it with the bytes after it.
fn byte_string(bytes: &[u8]) -> Result<(&[u8], &[u8]), BencodeError> {
    let (len, rest) = number(bytes, b':')?;
    let len = usize::try_from(len).map_err(|_| BencodeError::Malformed)?;
    rest.split_at_checked(len).ok_or(BencodeError::Truncated)
}

/// Parses a number in canonical form up to the byte `end`; returns it with the bytes after `end`.
fn number(bytes: &[u8], end: u8) -> Result<(i64, &[u8]), BencodeError> {
    // The longest number, i64::MIN, has 20 characters.
    let mut parts = bytes.splitn(2, |byte| *byte == end);
    let (digits, rest) = (parts.next().unwrap_or_default(), parts.next());
    let rest = rest.ok_or(if digits.len() > 20 {
        BencodeError::Malformed
    } else {
        BencodeError::Truncated
    })?;
    let text = str::from_utf8(digits).map_err(|_| BencodeError::Malformed)?;
    let number: i64 = text.parse().map_err(|_| BencodeError::Malformed)?;
    if number.to_string() == text { Ok((number, rest)) } else { Err(BencodeError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_in_bencode() {
        let mut out = Vec::new();
        for value in [0, 7, 10, 1_000, u64::MAX] {
            write_integer(&mut out, value);
        }
        write_bytes(&mut out, b"spam");
        write_bytes(&mut out, b"");
        write_entry(&mut out, "a", 1);
        assert_eq!(out, b"i0ei7ei10ei1000ei18446744073709551615e4:spam0:1:ai1e");
    }

    #[test]
    fn only_valid_bencode_is_parsed() {
        let read = |text: &'static str| Value::parse(text.as_bytes());
        let dictionary = read("d1:ali5e4:spame1:b0:e").unwrap();
        let list = Value::List(vec![Value::Integer(5), Value::Bytes(b"spam")]);
        assert_eq!(dictionary.get("a"), Some(&list));
        assert_eq!(dictionary.get("b").and_then(Value::bytes), Some(&b""[..]));
        assert_eq!(dictionary.get("c"), None);
        assert_eq!(read("i-7e").unwrap().integer(), Some(-7));
        for (text, error) in [
            ("", BencodeError::Truncated),
            ("i5", BencodeError::Truncated),
            ("5:spam", BencodeError::Truncated),
            ("l", BencodeError::Truncated),
            ("d1:a", BencodeError::Truncated),
            ("i5ei6e", BencodeError::TrailingBytes),
            ("i05e", BencodeError::Malformed),
            ("i-0e", BencodeError::Malformed),
            ("ie", BencodeError::Malformed),
            ("-1:a", BencodeError::Malformed),
            ("x", BencodeError::Malformed),
            ("di5e1:ae", BencodeError::Malformed),
            ("d1:bi1e1:ai1ee", BencodeError::Unsorted),
            ("d1:ai1e1:ai1ee", BencodeError::Unsorted),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
        assert_eq!(Value::parse("l".repeat(100).as_bytes()), Err(BencodeError::Malformed));
    }

    #[test]
    fn the_encoded_bytes_of_a_value_are_found() {
        let of = |bytes: &'static str| {
            raw_value(bytes.as_bytes(), b"info").map(|raw| raw.escape_ascii().to_string())
        };
        assert_eq!(
            of("d1:zi1e4:infod1:ai1e1:bl1:cdeee1:ali2eee").as_deref(),
            Some("d1:ai1e1:bl1:cdeee")
        );
        assert_eq!(of("d4:infoi-5ee").as_deref(), Some("i-5e"));
        for none in
            ["", "d", "de", "le", "d4:info", "d4:infoe", "d4:infod", "d1:a4:infoe", "d4:infoi05ee"]
        {
            assert_eq!(of(none), None, "{none}");
        }
        assert_eq!(raw_value(format!("d4:info{}", "l".repeat(1 << 20)).as_bytes(), b"info"), None);
    }
}
