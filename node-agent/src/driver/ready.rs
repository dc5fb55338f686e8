//! Whether an editor answers HTTP. A request by hand over a bare connection: one write, one read, no client to set up.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An editor that is up answers within milliseconds; a host under load may take longer.
const ONE_TRY: Duration = Duration::from_secs(2);

/// Whether `GET path` at `endpoint` (host:port) answers 200. `Connection: close`, as code-server counts an open connection as a
/// visitor. Cancel-safe.
pub(super) async fn answers(endpoint: &str, path: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(endpoint).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {endpoint}\r\nAccept: */*\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = [0_u8; 13];
        stream.read_exact(&mut head).await?;
        Ok::<bool, std::io::Error>(is_ok(&head))
    };
    matches!(tokio::time::timeout(ONE_TRY, ask).await, Ok(Ok(true)))
}

/// `HTTP/1.1 200 ` or, without a reason phrase, `HTTP/1.1 200\r`.
fn is_ok(head: &[u8; 13]) -> bool {
    head.starts_with(b"HTTP/1.") && matches!(&head[8..], b" 200 " | b" 200\r")
}

/// Pauses between tries: 20 ms, half as much again each time, at most 250 ms.
#[derive(Debug)]
pub(super) struct Pauses(Duration);

impl Pauses {
    pub(super) fn new() -> Self {
        Self(Duration::from_millis(20))
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 3 / 2).min(Duration::from_millis(250));
        pause
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server that gives each connection this answer.
    async fn server(answer: &'static str) -> (String, tokio::task::JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address, tasks)
    }

    #[tokio::test]
    async fn only_200_is_an_answer() {
        for (answer, ready) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 200 OK\r\n\r\n", true),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", false),
            ("HTTP/1.1 2000\r\n", false),
            ("200", false),
            ("", false),
        ] {
            let (address, _server) = server(answer).await;
            assert_eq!(answers(&address, "/healthz").await, ready, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_no_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        drop(listener);
        assert!(!answers(&address, "/healthz").await);
    }

    #[test]
    fn pauses_rise_from_20_to_250_ms() {
        let mut pauses = Pauses::new();
        let all: Vec<u128> = (0..9).map(|_| pauses.next().as_millis()).collect();
        assert_eq!(all, [20, 30, 45, 67, 101, 151, 227, 250, 250]);
    }
}
