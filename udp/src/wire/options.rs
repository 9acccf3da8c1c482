//! The options behind an announce (BEP 41).

const END_OF_OPTIONS: u8 = 0;
const NOP: u8 = 1;
const URL_DATA: u8 = 2;

/// The pieces of an announce URL's path and query; to be read one behind the other
#[derive(Clone, Copy, Debug)]
pub struct UrlData<'a> {
    options: &'a [u8],
}

/// Reads the options behind an announce
///
/// Options of unknown types are skipped by their length. One that is cut off ends the options, and so the
/// URL data: the announce itself stands.
pub fn url_data(options: &[u8]) -> UrlData<'_> {
    UrlData { options }
}

impl<'a> Iterator for UrlData<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let (kind, rest) = self.options.split_first()?;
            match *kind {
                END_OF_OPTIONS => {
                    self.options = &[];
                    return None;
                }
                NOP => self.options = rest,
                kind => {
                    let (len, rest) = rest.split_first()?;
                    let (data, rest) = rest.split_at_checked(usize::from(*len))?;
                    self.options = rest;
                    if kind == URL_DATA {
                        return Some(data);
                    }
                }
            }
        }
    }
}
