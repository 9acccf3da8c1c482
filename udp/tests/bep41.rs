//! Tests of BEP 41, clause by clause.

use proptest::prelude::*;
use tsubame_udp::wire::url_data;

fn url(options: &[u8]) -> Vec<u8> {
    url_data(options).flatten().copied().collect()
}

#[test]
fn url_data_is_path_and_query() {
    let mut options = vec![2, 9];
    options.extend(b"/announce");
    assert_eq!(url(&options), b"/announce");
}

#[test]
fn several_url_data_options_are_concatenated() {
    let mut options = vec![2, 3];
    options.extend(b"/a?");
    options.extend([1, 1, 2, 0, 2, 2]);
    options.extend(b"x=");
    assert_eq!(url(&options), b"/a?x=");
}

#[test]
fn a_nop_is_one_byte_and_end_of_options_ends_them() {
    assert_eq!(url(&[1, 2, 1, b'a', 0, 2, 1, b'b']), b"a");
    assert_eq!(url(&[0, 0]), b"");
    assert_eq!(url(&[]), b"");
}

#[test]
fn unknown_options_are_skipped_by_their_length() {
    assert_eq!(url(&[0x7f, 2, 2, 9, 2, 1, b'a', 0xff, 0, 2, 1, b'b']), b"ab");
}

#[test]
fn a_truncated_option_ends_the_options() {
    assert_eq!(url(&[2, 1, b'a', 2]), b"a");
    assert_eq!(url(&[2, 1, b'a', 2, 5, b'b']), b"a");
    assert_eq!(url(&[9, 200, 2, 1, b'a']), b"");
}

#[test]
fn an_option_has_up_to_255_bytes() {
    let mut options = vec![2, 255];
    options.extend([b'x'; 255]);
    options.extend([2, 1, b'y']);
    assert_eq!(url(&options).len(), 256);
}

proptest! {
    #[test]
    fn a_text_split_into_options_is_concatenated(
        text in prop::collection::vec(any::<u8>(), 0..700),
        at in 1_usize..256,
    ) {
        let mut options = Vec::new();
        for chunk in text.chunks(at) {
            options.extend([2, chunk.len() as u8]);
            options.extend(chunk);
        }
        prop_assert_eq!(url(&options), text);
    }
}
