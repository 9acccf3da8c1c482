//! The options after an announce request (BEP 41).

/// Type of the option that ends the options.
const END_OF_OPTIONS: u8 = 0;
/// Type of the option without length and meaning, for padding.
const NOP: u8 = 1;
/// Type of the option that contains a piece of the URL.
const URL_DATA: u8 = 2;

/// Iterator over the pieces of the path and query of an announce URL, which must be concatenated.
#[derive(Clone, Copy, Debug)]
pub struct UrlData<'a> {
    options: &'a [u8],
}

/// Reads the options after an announce request.
///
/// Options of unknown types are skipped by their length. A truncated option ends the options, and with them the URL
/// data; the announce stays valid.
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
