//! What rustls does not tell of a server's certificate (X.509: RFC 5280, 4.1; encoding: ITU-T X.690).

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// The explicit tag of the version, which a certificate of version 1 lacks.
const VERSION: u8 = 0xa0;
/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// Parts of a certificate, each as its bytes lie in it.
pub(super) struct Certificate<'a> {
    /// The object identifier of the algorithm that it is signed with.
    pub(super) signature_algorithm: &'a [u8],
    /// The holder's public key, with its algorithm.
    pub(super) public_key: &'a [u8],
    /// The holder's first common name.
    pub(super) common_name: Option<&'a str>,
}

impl<'a> Certificate<'a> {
    /// Reads a certificate; `None` where it is none.
    pub(super) fn read(der: &'a [u8]) -> Option<Self> {
        let (outer, _) = element(der)?;
        let (signed, rest) = element(outer.content(SEQUENCE)?)?;
        let (algorithm, _) = element(rest)?;
        let (signature_algorithm, _) = element(algorithm.content(SEQUENCE)?)?;
        let (first, mut rest) = element(signed.content(SEQUENCE)?)?;
        if first.tag == VERSION {
            (_, rest) = element(rest)?;
        }
        // After the serial number: algorithm, issuer, validity, subject, public key.
        for _ in 0..3 {
            (_, rest) = element(rest)?;
        }
        let (subject, rest) = element(rest)?;
        let (public_key, _) = element(rest)?;
        Some(Self {
            signature_algorithm: signature_algorithm.content(OBJECT_IDENTIFIER)?,
            public_key: public_key.whole,
            common_name: common_name(subject.content(SEQUENCE)?),
        })
    }
}

fn common_name(mut subject: &[u8]) -> Option<&str> {
    while !subject.is_empty() {
        let (names, rest) = element(subject)?;
        let (name, _) = element(names.content(SET)?)?;
        let (kind, value) = element(name.content(SEQUENCE)?)?;
        if kind.content(OBJECT_IDENTIFIER)? == COMMON_NAME {
            return std::str::from_utf8(element(value)?.0.content).ok();
        }
        subject = rest;
    }
    None
}

/// One element: tag, length, content.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

impl<'a> Element<'a> {
    fn content(&self, tag: u8) -> Option<&'a [u8]> {
        (self.tag == tag).then_some(self.content)
    }
}

/// The first element of these bytes, and what follows it. Lengths of up to four bytes; a tag is one byte.
fn element(bytes: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&tag, after) = bytes.split_first()?;
    let (&first, after) = after.split_first()?;
    let (length, header) = match first {
        0..=0x7f => (usize::from(first), 2),
        0x81..=0x84 => {
            let count = usize::from(first & 0x7f);
            let length = after.get(..count)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            (length, 2 + count)
        }
        _ => return None,
    };
    let end = header + length;
    let whole = bytes.get(..end)?;
    Some((Element { tag, content: &whole[header..], whole }, &bytes[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_certificate_are_never_read_beyond_their_end() {
        assert!(Certificate::read(&[]).is_none());
        for length in [0x00, 0x01, 0x7f, 0x80, 0x81, 0x84, 0x85, 0xff] {
            assert!(Certificate::read(&[SEQUENCE, length, 0xff, 0xff, 0xff, 0xff]).is_none());
        }
        let name = [SEQUENCE, 9, OBJECT_IDENTIFIER, 3, 0x55, 0x04, 0x03, 0x0c, 2, b'd', b'b'];
        let subject = [&[SET, 11][..], &name].concat();
        assert_eq!(common_name(&subject), Some("db"));
        assert_eq!(common_name(&subject[..subject.len() - 1]), None);
    }
}
