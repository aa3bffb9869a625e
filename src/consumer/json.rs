//! Reading JSON from outside.

use serde::Deserialize;

/// Reads a JSON object. Derived deserializers would also accept an array for a struct, so arrays are refused first.
/// `Err` says what is wrong with the text.
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<T, String> {
    let text = std::str::from_utf8(text.as_ref()).map_err(|error| error.to_string())?;
    if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
        return Err("not a JSON object".to_owned());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}
