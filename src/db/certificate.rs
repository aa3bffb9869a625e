//! What rustls does not tell of a certificate (X.509: RFC 5280, 4.1; its encoding: ITU-T X.690).

const BIT_STRING: u8 = 0x03;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// The explicit tag of the version, which a certificate of version 1 lacks.
const VERSION: u8 = 0xa0;
/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// A certificate's parts, each as its bytes lie in it.
pub(super) struct Certificate<'a> {
    /// Whether it is of version 1, which knows no extensions.
    pub(super) is_version_1: bool,
    /// What is signed.
    pub(super) signed: &'a [u8],
    /// The algorithm that it is signed with: the object identifier and its parameters, as two elements.
    pub(super) signature_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    /// Who signed it.
    pub(super) issuer: &'a [u8],
    /// From when to when it is valid, as `YYYYMMDDHHMMSS` in UTC.
    valid: (String, String),
    /// Whose it is.
    pub(super) subject: &'a [u8],
    /// The holder's public key with its algorithm, as one element.
    pub(super) public_key_info: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Reads a certificate; `None` where it is none.
    pub(super) fn read(der: &'a [u8]) -> Option<Self> {
        let (outer, _) = element(der)?;
        let (signed, rest) = element(outer.content(SEQUENCE)?)?;
        let (algorithm, rest) = element(rest)?;
        let (signature, _) = element(rest)?;
        let (first, mut rest) = element(signed.content(SEQUENCE)?)?;
        let is_version_1 = first.tag != VERSION;
        if !is_version_1 {
            // The serial number follows.
            (_, rest) = element(rest)?;
        }
        let (inner_algorithm, rest) = element(rest)?;
        let (issuer, rest) = element(rest)?;
        let (validity, rest) = element(rest)?;
        let (subject, rest) = element(rest)?;
        let (public_key_info, _) = element(rest)?;
        let (not_before, rest) = element(validity.content(SEQUENCE)?)?;
        let (not_after, _) = element(rest)?;
        // The algorithm stands inside too, so that nobody can claim another.
        (inner_algorithm.whole == algorithm.whole).then_some(())?;
        Some(Self {
            is_version_1,
            signed: signed.whole,
            signature_algorithm: algorithm.content(SEQUENCE)?,
            signature: bits(&signature)?,
            issuer: issuer.content(SEQUENCE)?,
            valid: (time(&not_before)?, time(&not_after)?),
            subject: subject.content(SEQUENCE)?,
            public_key_info: public_key_info.whole,
        })
    }

    /// Whether it is valid at a time, given as `YYYYMMDDHHMMSS` in UTC.
    pub(super) fn is_valid_at(&self, now: &str) -> bool {
        self.valid.0.as_str() <= now && now <= self.valid.1.as_str()
    }

    /// The object identifier of the algorithm that it is signed with.
    pub(super) fn signature_algorithm_name(&self) -> Option<&'a [u8]> {
        element(self.signature_algorithm)?.0.content(OBJECT_IDENTIFIER)
    }

    /// The holder's public key: its algorithm (with parameters), and its bits.
    pub(super) fn public_key(&self) -> Option<(&'a [u8], &'a [u8])> {
        let (algorithm, rest) = element(element(self.public_key_info)?.0.content(SEQUENCE)?)?;
        Some((algorithm.content(SEQUENCE)?, bits(&element(rest)?.0)?))
    }

    /// The holder's first common name.
    pub(super) fn common_name(&self) -> Option<&'a str> {
        common_name(self.subject)
    }
}

/// The bytes of a bit string, which must be whole ones.
fn bits<'a>(element: &Element<'a>) -> Option<&'a [u8]> {
    element.content(BIT_STRING)?.strip_prefix(&[0])
}

/// A time as `YYYYMMDDHHMMSS` in UTC, the only way in which a certificate may write it but for the century (RFC 5280, 4.1.2.5).
fn time(element: &Element<'_>) -> Option<String> {
    let digits = std::str::from_utf8(element.content).ok()?.strip_suffix('Z')?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    match (element.tag, digits.len()) {
        (UTC_TIME, 12) => Some(format!("{}{digits}", if digits < "50" { "20" } else { "19" })),
        (GENERALIZED_TIME, 14) => Some(digits.to_owned()),
        _ => None,
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
