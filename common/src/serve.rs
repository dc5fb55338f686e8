//! The server of both binaries: gRPC and HTTP on one port, reflection, graceful end.
//!
//! The accept loop is our own, because tonic's cannot speak HTTP/1.1 upgrades nor change its certificate while it runs,
//! and axum's cannot cut what does not end.

mod direct;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{Extensions, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::Connected as _;
use tower::{Service, ServiceExt as _};
use tower_http::classify::{GrpcCode, GrpcErrorsAsFailures, SharedClassifier};
use tower_http::trace::{DefaultOnFailure, TraceLayer};

use crate::telemetry::make_grpc_span;

pub use direct::Direct;

/// Open requests get this long to finish once the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// A peer that is gone without a word is noticed after these two together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection: an LMS backend watches and beats for all its students over one.
const STREAMS_PER_CONNECTION: u32 = 4096;
/// After `accept` failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A peer that takes longer to agree on TLS is none of ours.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Who shows no certificate has but a call to make, for which agents wait 10 s: nobody holds a connection for ever without saying
/// anything, or who it is.
const NAMELESS: Duration = Duration::from_secs(30);

/// gRPC and HTTP as one router. A path of neither is UNIMPLEMENTED to a gRPC caller and a 404 problem to others.
pub fn router(grpc: Routes, http: axum::Router) -> axum::Router {
    // Routes bring a fallback of their own, so ours is set after the merge.
    grpc.into_axum_router().layer(trace()).merge(http).fallback(no_such_route)
}

/// Makes the span of a request.
type MakeSpan<B> = fn(&hyper::Request<B>) -> tracing::Span;

/// A span for each gRPC request, and a line in the log for what failed.
fn trace<B>() -> TraceLayer<SharedClassifier<GrpcErrorsAsFailures>, MakeSpan<B>> {
    // What a caller did wrong is an answer, not a failure of ours.
    let answers = [
        GrpcCode::Cancelled,
        GrpcCode::InvalidArgument,
        GrpcCode::DeadlineExceeded,
        GrpcCode::NotFound,
        GrpcCode::AlreadyExists,
        GrpcCode::PermissionDenied,
        GrpcCode::ResourceExhausted,
        GrpcCode::FailedPrecondition,
        GrpcCode::Aborted,
        GrpcCode::OutOfRange,
        GrpcCode::Unimplemented,
        GrpcCode::Unauthenticated,
    ];
    let classifier =
        answers.into_iter().fold(GrpcErrorsAsFailures::new(), GrpcErrorsAsFailures::with_success);
    TraceLayer::new(SharedClassifier::new(classifier))
        .make_span_with(make_grpc_span::<B> as MakeSpan<B>)
        .on_failure(DefaultOnFailure::new().level(tracing::Level::WARN))
}

async fn no_such_route(request: Request) -> Response {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        return tonic::Status::unimplemented("no such method").into_http::<axum::body::Body>();
    }
    let problem = r#"{"type":"about:blank","title":"Not Found","status":404,"reason":"ROUTE_NOT_FOUND"}"#;
    let kind = HeaderValue::from_static("application/problem+json");
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, kind)], problem).into_response()
}

/// Routes that hold server reflection, v1 and v1alpha (which grpcurl 1.8 speaks), for Carrel's services, health, and
/// the messages of `google.rpc` that errors carry. Add the services to them.
pub fn reflection() -> Result<Routes, tonic_reflection::server::Error> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(carrel_proto::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(builder().build_v1()?).add_service(builder().build_v1alpha()?))
}

/// What can be served: a router, or a [`Direct`].
pub trait Served:
    Service<hyper::Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Served for S where
    S: Service<hyper::Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// Serves HTTP/1.1 and HTTP/2 (with prior knowledge) on one port until `stop`; then takes no new connection, lets open
/// requests finish for up to 5 s, and cuts the rest.
///
/// gRPC handlers find `tonic::transport::server::TcpConnectInfo` in the request's extensions.
pub async fn serve(
    listener: TcpListener,
    service: impl Served,
    stop: CancellationToken,
) -> std::io::Result<()> {
    accept(listener, &stop, |stream| {
        let (service, stop) = (service.clone(), stop.clone());
        async move {
            let peer = stream.connect_info();
            let stamp = move |extensions: &mut Extensions| _ = extensions.insert(peer.clone());
            connection(stream, service, stamp, stop).await;
        }
    })
    .await
}

/// As [`serve`], over TLS. Each connection is accepted by the configuration that is the newest at that moment; one of a peer that shows
/// no certificate is cut after 30 s.
///
/// gRPC handlers find the peer's certificates with `tonic::Request::peer_certs`.
pub async fn serve_tls(
    listener: TcpListener,
    service: impl Served,
    tls: watch::Receiver<Arc<ServerConfig>>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    accept(listener, &stop, |stream| {
        let (service, stop) = (service.clone(), stop.clone());
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
        async move {
            let peer = stream.peer_addr().ok();
            let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
            let stream = match stop.run_until_cancelled(shaken).await {
                Some(Ok(Ok(stream))) => stream,
                Some(Ok(Err(error))) => return tell_refused(&error, peer),
                Some(Err(_)) | None => return,
            };
            let named = stream.get_ref().1.peer_certificates().is_some_and(|shown| !shown.is_empty());
            let info = stream.connect_info();
            let stamp = move |extensions: &mut Extensions| {
                extensions.insert(info.get_ref().clone());
                extensions.insert(info.clone());
            };
            let served = connection(stream, service, stamp, stop);
            if named {
                served.await;
            } else if tokio::time::timeout(NAMELESS, served).await.is_err() {
                tracing::debug!(?peer, "cutting a connection that shows no certificate");
            }
        }
    })
    .await
}

/// An agent whose certificate has ended is seen here, too; a health check that hangs up is nothing.
fn tell_refused(error: &std::io::Error, peer: Option<SocketAddr>) {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        tracing::debug!(%error, ?peer, "a connection ended before it spoke TLS");
    } else {
        tracing::info!(%error, ?peer, "TLS refused a connection");
    }
}

/// Takes connections until `stop`, then waits for those that are open.
async fn accept<C: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    stop: &CancellationToken,
    connection: impl Fn(TcpStream) -> C,
) -> std::io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        // Each arm is cancel-safe: `accept` takes no connection before it is ready, `join_next` loses nothing, a
        // token stays cancelled.
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match stream.set_nodelay(true) {
                    Ok(()) => _ = connections.spawn(connection(stream)),
                    Err(error) => tracing::debug!(%error, "a connection ended before it began"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::info!(connections = connections.len(), "cutting connections that did not end");
        connections.shutdown().await;
    }
    Ok(())
}

/// Serves one connection to its end; `stamp` says in each request who the peer is.
async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    service: impl Served,
    stamp: impl Fn(&mut Extensions) + Clone + Send + 'static,
    stop: CancellationToken,
) {
    let service = service.map_request(move |mut request: hyper::Request<Incoming>| {
        stamp(request.extensions_mut());
        request
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(KEEPALIVE_INTERVAL))
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    let served =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(served);
    // The connection is polled by reference: losing the race only means to poll it again below.
    let result = tokio::select! {
        result = after_others(served.as_mut()) => result,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "a connection broke");
    }
}

/// Polls `connection` after what else is ready: the answers of handlers that end together then leave in one write instead of
/// one each, which is a third of what a short call costs. A scheduler that runs first what was woken last would else write
/// after each of them.
async fn after_others<C: Future>(mut connection: Pin<&mut C>) -> C::Output {
    let mut stood_back = false;
    std::future::poll_fn(move |context| {
        stood_back = !stood_back;
        if stood_back {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        connection.as_mut().poll(context)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Context;

    use axum::routing::get;
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::client::legacy::Client;
    use tokio::io::{AsyncReadExt as _, ReadBuf};
    use tokio_rustls::rustls;
    use tonic::body::Body;
    use tonic::codegen::Bytes;

    use super::*;

    struct Server {
        address: SocketAddr,
        stop: CancellationToken,
        served: tokio::task::JoinHandle<std::io::Result<()>>,
    }

    #[expect(clippy::disallowed_methods, reason = "a test has no TaskTracker")]
    async fn server(http: axum::Router) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let routes = router(reflection().expect("valid descriptors"), http);
        Server { address, stop: stop.clone(), served: tokio::spawn(serve(listener, routes, stop)) }
    }

    async fn get_text(address: SocketAddr, path: &str) -> (StatusCode, String) {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let uri = format!("http://{address}{path}").parse().expect("uri");
        let response = client.get(uri).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn http_1_and_grpc_share_one_port() {
        let server = server(axum::Router::new().route("/healthz", get(async || "ok"))).await;
        assert_eq!(get_text(server.address, "/healthz").await, (StatusCode::OK, "ok".into()));
        let (status, problem) = get_text(server.address, "/nowhere").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(problem.contains("ROUTE_NOT_FOUND"), "{problem}");

        let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address))
            .expect("endpoint")
            .connect()
            .await
            .expect("connected");
        let request = hyper::Request::post(format!("http://{}/carrel.v1.NoService/NoMethod", server.address))
            .header("content-type", "application/grpc")
            .body(Body::default())
            .expect("request");
        let answer = channel.oneshot(request).await.expect("an answer");
        assert_eq!(answer.headers()["grpc-status"], "12");
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a test has no TaskTracker")]
    async fn a_service_past_the_router_is_called_and_the_router_has_all_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (_reporter, health) = tonic_health::server::health_reporter();
        let http = axum::Router::new().route("/healthz", get(async || "ok"));
        let service = Direct::new(health, router(reflection().expect("valid descriptors"), http));
        tokio::spawn(serve(listener, service, CancellationToken::new()));

        assert_eq!(get_text(address, "/healthz").await, (StatusCode::OK, "ok".into()));
        let (status, _) = get_text(address, "/grpc.health.v1.Healthy/Check").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "another service, though its name begins like that one's");
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("endpoint");
        let channel = channel.connect().await.expect("connected");
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
        let answer = client.check(tonic_health::pb::HealthCheckRequest::default()).await;
        assert_eq!(answer.expect("an answer").into_inner().status, 1, "SERVING");
    }

    #[tokio::test]
    async fn an_open_request_may_finish_after_the_stop() {
        let (begun, begin) = tokio::sync::oneshot::channel();
        let begun = std::sync::Arc::new(std::sync::Mutex::new(Some(begun)));
        let slow = get(async move || {
            let begun = begun.lock().expect("no panic").take();
            let _ = begun.expect("called once").send(());
            tokio::time::sleep(Duration::from_millis(200)).await;
            "done"
        });
        let server = server(axum::Router::new().route("/slow", slow)).await;
        let stop = async {
            begin.await.expect("begun");
            server.stop.cancel();
        };
        let (answer, ()) = tokio::join!(get_text(server.address, "/slow"), stop);
        assert_eq!(answer, (StatusCode::OK, "done".into()));
        server.served.await.expect("no panic").expect("no error");
        assert!(TcpStream::connect(server.address).await.is_err(), "no new connections");
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a test has no TaskTracker")]
    async fn who_shows_no_certificate_and_says_nothing_holds_no_connection() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["carrel".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let tls = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], private.into())
            .expect("they belong together");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (_kept, tls) = watch::channel(Arc::new(tls));
        tokio::spawn(serve_tls(listener, axum::Router::new(), tls, CancellationToken::new()));

        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).expect("a certificate");
        let trusting = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.expect("connected");
        let name: rustls::pki_types::ServerName<'static> = "carrel".try_into().expect("a name");
        let connected = tokio_rustls::TlsConnector::from(Arc::new(trusting)).connect(name, stream).await;
        let mut stream = connected.expect("it is trusted");
        // Nobody says anything, so time runs on to the next limit.
        tokio::time::pause();
        let ended = tokio::time::timeout(NAMELESS * 2, stream.read(&mut [0; 1])).await;
        assert!(!matches!(ended, Err(_) | Ok(Ok(1..))), "{ended:?}");
    }

    /// Counts the writes of a connection.
    struct Counted<S> {
        stream: S,
        writes: Arc<AtomicUsize>,
    }

    impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(context, buffer)
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.writes.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.stream).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(context)
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    #[expect(clippy::disallowed_methods, reason = "a test has no TaskTracker")]
    async fn answers_that_are_ready_together_leave_in_few_writes() {
        const CALLS: usize = 32;
        let gate = Arc::new(tokio::sync::Barrier::new(CALLS + 1));
        let waits = Arc::clone(&gate);
        let routes = axum::Router::new().route("/", get(async move || _ = waits.wait().await));
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let writes = Arc::new(AtomicUsize::new(0));
        let counted = Counted { stream: ours, writes: Arc::clone(&writes) };
        tokio::spawn(connection(counted, routes, |_| {}, CancellationToken::new()));
        let (client, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(theirs))
                .await
                .expect("HTTP/2");
        tokio::spawn(driver);
        let calls: Vec<_> = (0..CALLS)
            .map(|_| {
                let request = hyper::Request::get("http://carrel/").body(Empty::<Bytes>::new());
                tokio::spawn(client.clone().send_request(request.expect("a request")))
            })
            .collect();
        // All are in their handlers once the barrier lets this go.
        let before = writes.load(Ordering::Relaxed);
        gate.wait().await;
        for call in calls {
            assert_eq!(call.await.expect("no panic").expect("an answer").status(), StatusCode::OK);
        }
        let writes = writes.load(Ordering::Relaxed) - before;
        assert!(writes <= CALLS / 4, "{writes} writes for {CALLS} answers");
    }
}
