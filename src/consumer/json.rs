//! Reading JSON from outside.

use serde::Deserialize;

/// Reads a JSON object. Derived deserializers would also accept an array for a struct, so arrays are refused first.
///
/// # Errors
/// What is wrong with the text.
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
        return Err("not a JSON object".to_owned());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// The same from bytes, which must be UTF-8.
pub(super) fn object_from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    object(std::str::from_utf8(bytes).map_err(|error| error.to_string())?)
}
