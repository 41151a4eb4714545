//! Objects in S3. A reading that breaks off is taken up again at its place; every request carries the ETag that
//! discovery saw, so that what comes is always of one version.

use std::ops::Range;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::failure::{Class, Failure};

use super::pattern::{PASSED_OVER, Pattern};
use super::{Object, Place, is_pattern};
use crate::store::S3Settings;
use crate::store::s3_client::{self, changed, split};

/// Times that a reading is taken up again without a single byte in between. The SDK retries each request besides.
const RESUMES: usize = 5;
/// Objects whose size and ETag are asked for in parallel, where the listing doesn't say them.
const HEADS: usize = 16;

#[derive(Clone)]
pub(super) struct S3Place {
    client: Client,
    settings: S3Settings,
    bucket: String,
    key: String,
}

pub(super) async fn list(address: &str, settings: &S3Settings, most: usize) -> Result<Vec<Object>, Failure> {
    let (bucket, pattern) = split(address)?;
    if !is_pattern(pattern) {
        return Ok(vec![find(address, settings).await?]);
    }
    let parsed =
        Pattern::new(pattern).map_err(|error| Failure::permanent(format!("source path {address}: {error}")))?;
    let client = s3_client::client(settings).await;
    let literal = pattern.split(['*', '?', '[']).next().unwrap_or_default();
    let mut pages = client
        .list_objects_v2()
        .bucket(bucket)
        .prefix(literal)
        .into_paginator()
        .send();
    let (mut keys, mut objects) = (Vec::new(), Vec::new());
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| s3_client::failure("list", address, settings, error))?;
        for found in page.contents() {
            let Some(key) = found.key() else { continue };
            // Some tools make an empty object for a folder.
            if key.ends_with('/') || !parsed.matches(key) {
                continue;
            }
            match (found.size(), found.e_tag()) {
                (Some(size), Some(tag)) => {
                    let (bucket, key) = (bucket.to_owned(), key.to_owned());
                    let place = S3Place {
                        client: client.clone(),
                        settings: settings.clone(),
                        bucket,
                        key,
                    };
                    objects.push(place.object(size, tag));
                }
                // Not every server lists them.
                _ => keys.push(format!("s3://{bucket}/{key}")),
            }
            if keys.len() + objects.len() > most {
                return Err(Failure::permanent(format!(
                    "source path {address} matches more than {most} objects; narrow it down"
                )));
            }
        }
    }
    let heads: Vec<_> = keys.iter().map(|key| find(key, settings)).collect();
    objects.extend(stream::iter(heads).buffered(HEADS).try_collect::<Vec<_>>().await?);
    if objects.is_empty() {
        return Err(Failure::permanent(format!(
            "no object matches {address} at {}; check bucket, prefix and pattern; {PASSED_OVER}",
            settings.server()
        )));
    }
    Ok(objects)
}

pub(super) async fn find(address: &str, settings: &S3Settings) -> Result<Object, Failure> {
    let (bucket, key) = split(address)?;
    if key.is_empty() || key.ends_with('/') {
        return Err(Failure::permanent(format!(
            "{address} names no object; name one, as in s3://bucket/folder/*.csv"
        )));
    }
    let client = s3_client::client(settings).await;
    let head = client.head_object().bucket(bucket).key(key).send().await;
    let head = head.map_err(|error| s3_client::failure("read", address, settings, error))?;
    let (Some(size), Some(tag)) = (head.content_length(), head.e_tag()) else {
        return Err(Failure::permanent(format!(
            "{address}: {} does not say the object's size and ETag, so a change of it could not be seen",
            settings.server()
        )));
    };
    let place = S3Place {
        client,
        settings: settings.clone(),
        bucket: bucket.to_owned(),
        key: key.to_owned(),
    };
    Ok(place.object(size, tag))
}

impl S3Place {
    fn object(self, size: i64, tag: &str) -> Object {
        Object {
            address: format!("s3://{}/{}", self.bucket, self.key),
            size: u64::try_from(size).unwrap_or_default(),
            version: bare(tag).to_owned(),
            place: Place::S3(self),
        }
    }
}

pub(in super::super) struct S3Stream {
    place: S3Place,
    address: String,
    tag: String,
    range: Range<u64>,
    body: Option<ByteStream>,
    waits: ExponentialBackoff,
}

impl S3Stream {
    pub(super) fn new(object: &Object, place: &S3Place, range: Range<u64>) -> Self {
        Self {
            place: place.clone(),
            address: object.address.clone(),
            tag: object.version.clone(),
            range,
            body: None,
            waits: backoff(),
        }
    }

    pub(super) async fn fill(&mut self, buffer: &mut Vec<u8>, want: usize) -> Result<usize, Failure> {
        let mut filled = 0;
        while filled < want && !self.range.is_empty() {
            match self.part(buffer).await {
                Ok(part) => {
                    filled += part;
                    self.waits = backoff();
                }
                Err(failure) if failure.class == Class::Transient => {
                    self.body = None;
                    let Some(wait) = self.waits.next() else {
                        return Err(failure);
                    };
                    tracing::debug!(object = %self.address, at = self.range.start, %failure, "reading again");
                    tokio::time::sleep(wait).await;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(filled)
    }

    async fn part(&mut self, buffer: &mut Vec<u8>) -> Result<usize, Failure> {
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let opened = self.request().await?;
                self.body.insert(opened)
            }
        };
        match body.next().await {
            Some(Ok(bytes)) => {
                let left = self.range.end - self.range.start;
                if bytes.len() as u64 > left {
                    return Err(Failure::permanent(format!(
                        "{}: {} sends more than the range that was asked for",
                        self.address,
                        self.place.settings.server()
                    )));
                }
                buffer.extend_from_slice(&bytes);
                self.range.start += bytes.len() as u64;
                Ok(bytes.len())
            }
            Some(Err(error)) => Err(self.broken(&error)),
            None => Err(self.broken(&"the answer ended too early")),
        }
    }

    async fn request(&self) -> Result<ByteStream, Failure> {
        let place = &self.place;
        let request = place
            .client
            .get_object()
            .bucket(&place.bucket)
            .key(&place.key)
            .if_match(format!("\"{}\"", self.tag));
        let answer = request
            .range(format!("bytes={}-{}", self.range.start, self.range.end - 1))
            .send()
            .await;
        let object = answer.map_err(|error| s3_client::failure("read", &self.address, &place.settings, error))?;
        // Not every server honours If-Match.
        if object.e_tag().is_some_and(|tag| bare(tag) != self.tag) {
            return Err(changed(&self.address));
        }
        Ok(object.body)
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::transient(format!(
            "reading {} from {} broke off at byte {}: {error}",
            self.address,
            self.place.settings.server(),
            self.range.start
        ))
    }
}

/// An ETag without its quotes: some servers leave them out in listings.
fn bare(tag: &str) -> &str {
    tag.strip_prefix('"')
        .and_then(|tag| tag.strip_suffix('"'))
        .unwrap_or(tag)
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_max_times(RESUMES)
        .with_jitter()
        .build()
}
