//! The join token: one string with which one host can enrol.
//!
//! It carries all that a new host has to know and trust: which Carrel it joins, the secret that proves it may, and the
//! authorities whose word counts. So there is no moment in which an agent believes whoever answers first.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::certificate::pem_of_certificates;
use crate::id::{ClusterId, SECRET_LENGTH};

/// Names the form; another form gets another number.
const FORM: &str = "carrel-join-1";

/// A join token. [`fmt::Display`] shows it in full: it is for the one who asked for it. [`fmt::Debug`] hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The Carrel to join.
    pub cluster: ClusterId,
    /// Proves that the bearer may; the control plane knows its hash only.
    pub secret: String,
    /// The certificates of the authorities to trust, DER; at least one.
    pub authorities: Vec<Vec<u8>>,
}

/// Why a text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a join token as CreateJoinToken gives it; was it cut when it was copied?")]
pub struct InvalidToken;

impl JoinToken {
    /// The certificates of the authorities to trust, PEM.
    pub fn ca_pem(&self) -> String {
        pem_of_certificates(self.authorities.iter().map(Vec::as_slice))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, ***)", self.cluster)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FORM}.{}.{}", self.cluster.0.simple(), self.secret)?;
        self.authorities.iter().try_for_each(|der| write!(f, ".{}", URL_SAFE_NO_PAD.encode(der)))
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let mut parts = text.trim().split('.');
        let mut next = || parts.next().ok_or(InvalidToken);
        if next()? != FORM {
            return Err(InvalidToken);
        }
        let cluster = next()?.parse().map_err(|_| InvalidToken)?;
        let secret = next()?.to_owned();
        if secret.len() != SECRET_LENGTH || !secret.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidToken);
        }
        let authorities: Vec<Vec<u8>> = parts
            .map(|part| URL_SAFE_NO_PAD.decode(part).map_err(|_| InvalidToken))
            .collect::<Result<_, _>>()?;
        if authorities.is_empty() || authorities.iter().any(Vec::is_empty) {
            return Err(InvalidToken);
        }
        Ok(Self { cluster, secret, authorities })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::new_secret;

    fn token() -> JoinToken {
        JoinToken {
            cluster: ClusterId::new(),
            secret: new_secret(),
            authorities: vec![vec![1, 2, 3], vec![4]],
        }
    }

    #[test]
    fn the_secret_is_not_shown_in_debug_form() {
        let token = token();
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn a_token_that_was_cut_or_belongs_elsewhere_is_refused() {
        let text = token().to_string();
        let secret = text.split('.').nth(2).expect("three parts").to_owned();
        for bad in [
            String::new(),
            text.replace("join-1", "join-2"),
            text.replace(&secret, "short"),
            text.replace(&secret, &"x".repeat(SECRET_LENGTH)),
            text.split('.').take(3).collect::<Vec<_>>().join("."),
            format!("{text}."),
            format!("{text}.!"),
        ] {
            assert_eq!(bad.parse::<JoinToken>(), Err(InvalidToken), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn comes_back_as_it_was_written(
            authorities in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..600), 1..3),
            around in "[ \n]{0,2}",
        ) {
            let token = JoinToken { authorities, ..token() };
            // A file that holds it ends in a newline.
            prop_assert_eq!(format!("{around}{token}{around}").parse::<JoinToken>(), Ok(token));
        }

        #[test]
        fn nonsense_never_panics(text in "(carrel-join-1)?[.a-z0-9-]*") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
