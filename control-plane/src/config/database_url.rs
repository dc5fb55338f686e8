//! Where the database is.

use super::BadConfig;
use crate::store::check_address;

/// A database URL, which may hold a password: it is never printed.
#[derive(Clone)]
pub struct DatabaseUrl(pub String);

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl std::str::FromStr for DatabaseUrl {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl DatabaseUrl {
    /// Refuses one that means nothing, or whose way can be listened to. Not where it is parsed: there the URL would be printed.
    ///
    /// # Errors
    /// [`BadConfig`] names the flag.
    pub fn check(&self) -> Result<(), BadConfig> {
        check_address(&self.0).map_err(|problem| BadConfig { flag: "--database-url", problem })
    }
}
