//! stub
use super::Connection;
use crate::error::Error;
/// stub
pub fn check_schema(_: &mut Connection) -> Result<(), Error> {
    Ok(())
}

/// stub
pub fn install(_: &mut Connection) -> Result<(), Error> {
    Ok(())
}
