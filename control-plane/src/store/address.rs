//! The way to Postgres, and who else could read and change what is said on it.

use std::net::IpAddr;
use std::str::FromStr as _;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Refuses a URL that means nothing, and a way over a network that is not sure to end at the server it names: on it are the
/// password and everything that is decided by. Encryption alone is not enough, since it may be with anybody.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn check_address(url: &str) -> Result<(), String> {
    let options = PgConnectOptions::from_str(url).map_err(|error| error.to_string())?;
    let host = options.get_host();
    let stays_here = options.get_socket().is_some() || host.starts_with('/') || is_loopback(host);
    if stays_here || matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
        return Ok(());
    }
    Err(format!(
        "the way to {host} leads over a network, where others could read and change what is sent; add \
         sslmode=verify-full&sslrootcert=FILE to the URL, with the certificates of the authority that vouches for the server"
    ))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_on_the_machine_may_go_in_plaintext() {
        for url in [
            "postgres://carrel@localhost/carrel",
            "postgres://carrel@127.0.0.1:5433/carrel",
            "postgres://carrel@[::1]/carrel",
            "postgres://carrel@db.example/carrel?host=/run/postgresql",
            "postgres://carrel@%2Frun%2Fpostgresql/carrel",
            "postgres://carrel:word@db.example/carrel?sslmode=verify-full&sslrootcert=/etc/carrel/rds.pem",
        ] {
            assert_eq!(check_address(url), Ok(()), "{url}");
        }
        for url in [
            "postgres://carrel:word@db.example/carrel",
            "postgres://carrel:word@10.0.0.7/carrel?sslmode=disable",
            "postgres://carrel:word@localhost.example/carrel",
            "postgres://carrel:word@localhost/carrel?hostaddr=10.0.0.7",
            "postgres://carrel:word@db.example/carrel?sslmode=prefer",
            "postgres://carrel:word@db.example/carrel?sslmode=require",
            "postgres://carrel:word@db.example/carrel?sslmode=verify-ca",
        ] {
            let problem = check_address(url).expect_err(url);
            assert!(problem.contains("sslmode=verify-full") && !problem.contains("word"), "{problem}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_without_its_password() {
        let problem = check_address("postgres://carrel:word@db.example:port/carrel").expect_err("no port");
        assert!(!problem.contains("word"), "{problem}");
    }
}
