//! Objects below an S3 prefix. A file is one request (segments are small), which S3 shows whole or not at all.
//!
//! Before its first conditional write a process finds out whether the server honours conditions at all: it makes an object
//! that must not be there, makes it again, and overwrites it under a tag that it doesn't have. The last two have to be
//! refused.

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use haulage_core::failure::{Class, Failure};
use tokio::sync::OnceCell;

use super::{Objects, Sight, Tag};
use crate::chance;
use crate::store::S3Settings;
use crate::store::s3_client;

/// No file of a segment, and no manifest, comes near it.
const MAX_OBJECT: i64 = 1 << 30;
/// Keys of one folder: more is a mistake.
const MAX_KEYS: usize = 5_000_000;

/// A bucket, and a prefix in it.
pub(in super::super) struct S3 {
    name: String,
    settings: S3Settings,
    bucket: String,
    /// Empty, or ends with a slash.
    prefix: String,
    honours: OnceCell<()>,
}

impl S3 {
    /// Touches nothing.
    pub(in super::super) fn new(name: &str, address: &str, settings: &S3Settings) -> Result<Self, Failure> {
        let (bucket, prefix) = s3_client::split(address)?;
        let prefix = prefix.trim_matches('/');
        Ok(Self {
            name: name.to_owned(),
            settings: settings.clone(),
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("{prefix}/")
            },
            honours: OnceCell::new(),
        })
    }

    async fn client(&self) -> Client {
        s3_client::client(&self.settings).await
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn failed<E>(&self, verb: &str, key: &str, error: SdkError<E, aws_sdk_s3::config::http::HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let failure = s3_client::failure(verb, &self.address(key), &self.settings, error);
        Failure {
            message: format!("destination {}: {}", self.name, failure.message),
            ..failure
        }
    }

    async fn head(&self, key: &str) -> Result<Option<HeadObjectOutput>, Failure> {
        let client = self.client().await;
        let request = client.head_object().bucket(&self.bucket).key(self.key(key));
        match request.send().await {
            Ok(head) => Ok(Some(head)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed("look at", key, error)),
        }
    }

    /// A write under a condition, as it stands. False if the condition doesn't hold.
    async fn write(&self, key: &str, read: Option<&Tag>, data: Bytes) -> Result<bool, Failure> {
        let client = self.client().await;
        let request = client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .body(ByteStream::from(data));
        let request = match read {
            Some(Tag(tag)) => request.if_match(tag),
            None => request.if_none_match("*"),
        };
        match request.send().await {
            Ok(_) => Ok(true),
            Err(error) => match status(&error) {
                // Somebody else was faster, is at it right now, or has removed it.
                Some(409 | 412) => Ok(false),
                Some(404) if read.is_some() && code(&error) == Some("NoSuchKey") => Ok(false),
                _ => Err(self.failed("write", key, error)),
            },
        }
    }

    async fn must_honour_conditions(&self) -> Result<(), Failure> {
        // On the heap: it is needed once, and every write's future would have room for it.
        self.honours
            .get_or_try_init(|| Box::pin(self.probe()))
            .await
            .map(|_| ())
    }

    async fn probe(&self) -> Result<(), Failure> {
        let key = format!(".haulage-probe-{}", chance::boot());
        let data = || Bytes::from_static(b"whether conditional writes are honoured\n");
        let made = self.write(&key, None, data()).await?;
        let again = self.write(&key, None, data()).await?;
        let other = Tag("\"00000000000000000000000000000000\"".to_owned());
        let over = self.write(&key, Some(&other), data()).await?;
        self.remove(&key).await?;
        // A repeated request, after a lost answer, may say of the first that it was refused.
        if again || over {
            return Err(Failure::permanent(format!(
                "destination {}: {} takes writes with a condition and ignores the condition (If-None-Match, If-Match), so two \
                 nodes could overwrite each other; use a server that honours it, as AWS S3 and MinIO do",
                self.name,
                self.settings.server()
            )));
        }
        if !made {
            tracing::debug!(destination = self.name, "the first answer of the probe was lost");
        }
        Ok(())
    }
}

#[async_trait]
impl Objects for S3 {
    async fn get(&self, key: &str) -> Result<Option<(Bytes, Tag)>, Failure> {
        let client = self.client().await;
        let answer = client.get_object().bucket(&self.bucket).key(self.key(key)).send().await;
        let object = match answer {
            Ok(object) => object,
            Err(error) if code(&error) == Some("NoSuchKey") => return Ok(None),
            Err(error) => return Err(self.failed("read", key, error)),
        };
        let Some(tag) = object.e_tag().map(|tag| Tag(tag.to_owned())) else {
            return Err(Failure::permanent(format!(
                "destination {}: {} does not say the ETag of {}, so a change of it could not be seen",
                self.name,
                self.settings.server(),
                self.address(key)
            )));
        };
        if object.content_length().is_some_and(|length| length > MAX_OBJECT) {
            return Err(Failure::permanent(format!(
                "destination {}: {} is larger than {MAX_OBJECT} bytes, and nothing that Haulage has written",
                self.name,
                self.address(key)
            )));
        }
        match object.body.collect().await {
            Ok(body) => Ok(Some((body.into_bytes(), tag))),
            Err(error) => Err(Failure::transient(format!(
                "destination {}: reading {} at {} broke off: {error}",
                self.name,
                self.address(key),
                self.settings.server()
            ))),
        }
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, Failure> {
        let head = self.head(key).await?;
        Ok(head.and_then(|head| u64::try_from(head.content_length()?).ok()))
    }

    async fn sight(&self, key: &str) -> Result<Option<Sight>, Failure> {
        let head = self.head(key).await?;
        Ok(head.and_then(|head| Some(Sight(head.e_tag()?.to_owned()))))
    }

    async fn put(&self, key: &str, data: Bytes) -> Result<(), Failure> {
        let client = self.client().await;
        let request = client.put_object().bucket(&self.bucket).key(self.key(key));
        match request.body(ByteStream::from(data)).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed("write", key, error)),
        }
    }

    async fn swap(&self, key: &str, read: Option<&Tag>, data: Bytes) -> Result<bool, Failure> {
        self.must_honour_conditions().await?;
        self.write(key, read, data).await
    }

    async fn remove(&self, key: &str) -> Result<(), Failure> {
        let client = self.client().await;
        match client
            .delete_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .send()
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some("NoSuchKey") => Ok(()),
            Err(error) => Err(self.failed("remove", key, error)),
        }
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>, Failure> {
        let client = self.client().await;
        let request = client.list_objects_v2().bucket(&self.bucket).prefix(self.key(folder));
        let mut pages = request.into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failed("list", folder, error))?;
            let found = page.contents().iter().filter_map(|object| object.key());
            keys.extend(
                found
                    .filter_map(|key| key.strip_prefix(&self.prefix))
                    .map(str::to_owned),
            );
            if keys.len() > MAX_KEYS {
                return Err(Failure::permanent(format!(
                    "destination {}: {} holds more than {MAX_KEYS} objects",
                    self.name,
                    self.address(folder)
                )));
            }
        }
        Ok(keys)
    }

    async fn forget_folder(&self, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    async fn forget_unfinished(&self, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    async fn check(&self) -> Result<(), Failure> {
        let client = self.client().await;
        let request = client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(&self.prefix)
            .max_keys(1);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed("list", "", error)),
        }
    }

    async fn exists(&self) -> Result<bool, Failure> {
        let client = self.client().await;
        match client.head_bucket().bucket(&self.bucket).send().await {
            Err(error) if status(&error) == Some(404) => Ok(false),
            // Whoever may not ask this may still write there.
            Err(error) => {
                let failure = self.failed("look at", "", error);
                if failure.class == Class::Transient {
                    Err(failure)
                } else {
                    Ok(true)
                }
            }
            Ok(_) => Ok(true),
        }
    }

    async fn identity(&self) -> String {
        format!("s3 {} {}/{}", self.settings.server(), self.bucket, self.prefix)
    }

    fn address(&self, key: &str) -> String {
        format!("s3://{}/{}{key}", self.bucket, self.prefix)
    }
}

fn status<E>(error: &SdkError<E, aws_sdk_s3::config::http::HttpResponse>) -> Option<u16> {
    match error {
        SdkError::ServiceError(service) => Some(service.raw().status().as_u16()),
        _ => None,
    }
}

fn code<E: ProvideErrorMetadata>(error: &SdkError<E, aws_sdk_s3::config::http::HttpResponse>) -> Option<&str> {
    match error {
        SdkError::ServiceError(service) => service.err().code(),
        _ => None,
    }
}
