//! Plain HTTP/1.1 requests, each on a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// Gets a URL; `None` when nobody answers within 5 s.
pub async fn get(url: &str) -> Option<(u16, String)> {
    let request = Request::get(url).header("connection", "close").body(Empty::<Bytes>::new()).expect("a URL");
    let answer = async {
        let response = Client::builder(TokioExecutor::new()).build_http().request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(Duration::from_secs(5), answer).await.ok()?
}

/// Whether a URL answers 200.
pub async fn is_ok(url: &str) -> bool {
    matches!(get(url).await, Some((200, _)))
}
