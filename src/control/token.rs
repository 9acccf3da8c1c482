//! The token that requests from other hosts to the control plane must have.

use crate::config::ControlConfig;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Permitted lengths of a token in bytes.
const TOKEN_LEN: std::ops::RangeInclusive<usize> = 16..=1000;

/// Maximum bytes of the file of a token.
const FILE_LEN_MAX: u64 = 4 << 10;

/// A secret token.
#[derive(Clone)]
pub struct ControlToken(Arc<[u8]>);

/// Omits the token, so that it does not appear in logs.
impl std::fmt::Debug for ControlToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlToken(..)")
    }
}

impl ControlToken {
    /// Reads the token of a config, if it has one. White space around the token is ignored.
    ///
    /// # Errors
    ///
    /// Returns an error text if the file cannot be read, or the token is too short or too long.
    pub fn load(control: &ControlConfig) -> Result<Option<Self>, String> {
        let Some(path) = &control.token_file else { return Ok(None) };
        let bytes = crate::lines::read(path, FILE_LEN_MAX).map_err(|error| {
            let path = path.display();
            format!("control.token_file: cannot read {path}: {error}; give a file that this user can read")
        })?;
        let token = bytes.trim_ascii();
        if !TOKEN_LEN.contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
            return Err(format!(
                "control.token_file: {} must contain one token of {} to {} printable characters; write one with: \
                 openssl rand -hex 32",
                path.display(),
                TOKEN_LEN.start(),
                TOKEN_LEN.end()
            ));
        }
        Ok(Some(Self(token.into())))
    }

    /// Returns whether an `Authorization` header has the token. The time of the comparison does not depend on the bytes
    /// that are right.
    pub fn permits(&self, authorization: &str) -> bool {
        let given = authorization.split_once(' ').filter(|(scheme, _)| {
            // RFC 9110, section 11.1.
            scheme.eq_ignore_ascii_case("bearer")
        });
        given.is_some_and(|(_, token)| token.trim().as_bytes().ct_eq(&self.0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn tokens_are_read_and_compared_whole() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be created");
        let config = format!("control: {{token_file: {}}}", file.path().display());
        let control = Config::parse("test", &config).expect("the config is valid").control;
        for invalid in ["", "short", "sixteen\u{e9}characters", "with space inside it"] {
            std::fs::write(file.path(), invalid).expect("the file is writable");
            let error = ControlToken::load(&control).expect_err(invalid);
            assert!(error.contains("control.token_file") && error.contains("openssl"), "{error}");
        }
        std::fs::write(file.path(), "0123456789abcdef\n").expect("the file is writable");
        let token = ControlToken::load(&control).expect("the token is valid").expect("is there");
        assert_eq!(format!("{token:?}"), "ControlToken(..)");
        for (authorization, is_permitted) in [
            ("Bearer 0123456789abcdef", true),
            ("bearer  0123456789abcdef ", true),
            ("Bearer 0123456789abcdeF", false),
            ("Bearer 0123456789abcde", false),
            ("Bearer 0123456789abcdef0", false),
            ("Basic 0123456789abcdef", false),
            ("0123456789abcdef", false),
            ("", false),
        ] {
            assert_eq!(token.permits(authorization), is_permitted, "{authorization:?}");
        }
    }
}
