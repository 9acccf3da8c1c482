//! The info hashes of a `.torrent` file (BEP 3, BEP 52).

use sha1::{Digest, Sha1};
use sha2::Sha256;
use tsubame_http::bencode;
use tsubame_storage::InfoHash;

/// Returns the info hashes that clients announce for a torrent: one, or two for a hybrid of versions 1 and 2.
///
/// An error says why the file is not a torrent file.
pub fn info_hashes(bytes: &[u8]) -> Result<Vec<InfoHash>, &'static str> {
    let info = bencode::raw_value(bytes, b"info").ok_or("it has no info dictionary")?;
    if info.first() != Some(&b'd') {
        return Err("its info is not a dictionary");
    }
    let mut hashes = Vec::new();
    let is_v2 = bencode::raw_value(info, b"meta version") == Some(b"i2e");
    // A torrent of version 2 only has no `pieces`, which version 1 requires.
    if !is_v2 || bencode::raw_value(info, b"pieces").is_some() {
        hashes.push(InfoHash(Sha1::digest(info).into()));
    }
    if is_v2 {
        let digest: [u8; 32] = Sha256::digest(info).into();
        hashes.extend(digest.first_chunk().copied().map(InfoHash));
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> Vec<String> {
        info_hashes(bytes).unwrap().iter().map(InfoHash::to_string).collect()
    }

    #[test]
    fn each_version_has_its_own_info_hash() {
        // Computed by sha1sum and sha256sum from the info dictionary.
        let v1 = b"d8:announce1:x4:infod4:name1:a6:pieces0:ee";
        assert_eq!(hex(v1), ["476ddb96349da91298ede87b9ffff035959e4143"]);
        let v2 = b"d4:infod12:meta versioni2e4:name1:aee";
        assert_eq!(hex(v2), ["78813b045e6e2fc4e169247fc558967ee6e77ced"]);
        let hybrid = b"d4:infod12:meta versioni2e4:name1:a6:pieces0:ee";
        assert_eq!(
            hex(hybrid),
            [
                "b99ef0ceca9c87a677c7c26c101e46341490f924",
                "f0cb621b88462097e814b2162a3460af007fa65d"
            ]
        );
        assert!(info_hashes(b"d4:infoi1ee").is_err() && info_hashes(b"").is_err());
    }
}
