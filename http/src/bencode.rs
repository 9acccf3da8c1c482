//! Bencode (BEP 3): the few forms that replies need, appended to a buffer; and all of it, read as strictly as the
//! strictest client does.
//!
//! Keys of a dictionary must be sorted: whoever writes one sees to that, and whoever reads one finds out.

use thiserror::Error;

/// Appends a byte string
pub fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    decimal(out, bytes.len() as u64);
    out.push(b':');
    out.extend_from_slice(bytes);
}

/// Appends an integer
pub fn integer(out: &mut Vec<u8>, value: u64) {
    out.push(b'i');
    decimal(out, value);
    out.push(b'e');
}

/// Appends a key and its integer
pub fn entry(out: &mut Vec<u8>, key: &str, value: u64) {
    bytes(out, key.as_bytes());
    integer(out, value);
}

/// Appends a number
pub(crate) fn decimal(out: &mut Vec<u8>, value: u64) {
    let mut digits = [0; 20];
    let mut rest = value;
    let mut len = 0;
    for digit in digits.iter_mut().rev() {
        // One digit: it fits a byte.
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        len += 1;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.split_at(digits.len() - len).1);
}

/// Lists within lists that are read
const DEPTH_MAX: usize = 16;

/// What was read
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// `i5e`
    Integer(i64),
    /// `4:spam`
    Bytes(&'a [u8]),
    /// `l...e`
    List(Vec<Self>),
    /// `d...e`, in the order of the keys
    Dictionary(Vec<(&'a [u8], Self)>),
}

/// Why bytes are no bencode
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadBencode {
    /// They end too soon
    #[error("ends too soon")]
    Short,
    /// They go on
    #[error("goes on after its end")]
    Long,
    /// Something that is none of the four forms, or a number that is not written the only way it may be
    #[error("malformed")]
    Malformed,
    /// A key that should stand before the one before it, or is there twice
    #[error("has keys that are not sorted")]
    Unsorted,
}

impl<'a> Value<'a> {
    /// Reads one value, which must be all there is
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadBencode> {
        let (value, rest) = Self::read(bytes, DEPTH_MAX)?;
        if rest.is_empty() { Ok(value) } else { Err(BadBencode::Long) }
    }

    fn read(bytes: &'a [u8], depth: usize) -> Result<(Self, &'a [u8]), BadBencode> {
        let (first, mut rest) = bytes.split_first().ok_or(BadBencode::Short)?;
        let depth = depth.checked_sub(1).ok_or(BadBencode::Malformed)?;
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
                        return Err(BadBencode::Unsorted);
                    }
                    entries.push((key, value));
                    rest = after;
                }
                Ok((Self::Dictionary(entries), rest.split_at(1).1))
            }
            _ => Err(BadBencode::Malformed),
        }
    }

    /// The value of a key, if this is a dictionary that has it
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Dictionary(entries) = self else { return None };
        entries.iter().find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value)
    }

    /// The integer, if it is one
    pub fn integer(&self) -> Option<i64> {
        if let Self::Integer(number) = self { Some(*number) } else { None }
    }

    /// The bytes, if it is a byte string
    pub fn bytes(&self) -> Option<&'a [u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }
}

/// The bytes of a key's value in a dictionary, as they stand there; `None` without that key, or where what stands
/// before it is no bencode
///
/// Torrents are made by programs of all kinds: keys that are not sorted are no reason not to find one.
pub fn raw<'a>(dictionary: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
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

/// What follows a value
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

fn byte_string(bytes: &[u8]) -> Result<(&[u8], &[u8]), BadBencode> {
    let (len, rest) = number(bytes, b':')?;
    let len = usize::try_from(len).map_err(|_| BadBencode::Malformed)?;
    rest.split_at_checked(len).ok_or(BadBencode::Short)
}

/// A number up to what ends it; there is one way to write each
fn number(bytes: &[u8], end: u8) -> Result<(i64, &[u8]), BadBencode> {
    // The longest: i64::MIN.
    let mut parts = bytes.splitn(2, |byte| *byte == end);
    let (digits, rest) = (parts.next().unwrap_or_default(), parts.next());
    let rest =
        rest.ok_or(if digits.len() > 20 { BadBencode::Malformed } else { BadBencode::Short })?;
    let text = str::from_utf8(digits).map_err(|_| BadBencode::Malformed)?;
    let number: i64 = text.parse().map_err(|_| BadBencode::Malformed)?;
    if number.to_string() == text { Ok((number, rest)) } else { Err(BadBencode::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_bencode() {
        let mut out = Vec::new();
        for value in [0, 7, 10, 1_000, u64::MAX] {
            integer(&mut out, value);
        }
        bytes(&mut out, b"spam");
        bytes(&mut out, b"");
        entry(&mut out, "a", 1);
        assert_eq!(out, b"i0ei7ei10ei1000ei18446744073709551615e4:spam0:1:ai1e");
    }

    #[test]
    fn what_is_read_is_as_it_must_be() {
        let read = |text: &'static str| Value::parse(text.as_bytes());
        let dictionary = read("d1:ali5e4:spame1:b0:e").unwrap();
        let list = Value::List(vec![Value::Integer(5), Value::Bytes(b"spam")]);
        assert_eq!(dictionary.get("a"), Some(&list));
        assert_eq!(dictionary.get("b").and_then(Value::bytes), Some(&b""[..]));
        assert_eq!(dictionary.get("c"), None);
        assert_eq!(read("i-7e").unwrap().integer(), Some(-7));
        for (text, error) in [
            ("", BadBencode::Short),
            ("i5", BadBencode::Short),
            ("5:spam", BadBencode::Short),
            ("l", BadBencode::Short),
            ("d1:a", BadBencode::Short),
            ("i5ei6e", BadBencode::Long),
            ("i05e", BadBencode::Malformed),
            ("i-0e", BadBencode::Malformed),
            ("ie", BadBencode::Malformed),
            ("-1:a", BadBencode::Malformed),
            ("x", BadBencode::Malformed),
            ("di5e1:ae", BadBencode::Malformed),
            ("d1:bi1e1:ai1ee", BadBencode::Unsorted),
            ("d1:ai1e1:ai1ee", BadBencode::Unsorted),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
        assert_eq!(Value::parse("l".repeat(100).as_bytes()), Err(BadBencode::Malformed));
    }

    #[test]
    fn a_value_is_found_as_it_stands() {
        let of = |bytes: &'static str| {
            raw(bytes.as_bytes(), b"info").map(|raw| raw.escape_ascii().to_string())
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
        assert_eq!(raw(format!("d4:info{}", "l".repeat(1 << 20)).as_bytes(), b"info"), None);
    }
}
