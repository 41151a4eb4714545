//! The checkpoint store under an S3 prefix. S3 shows an object whole or not at all, so there is nothing to rename.

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use haulage_core::failure::Failure;

use super::s3_client::{self, S3Settings};
use super::{OBJECTS_AT_A_TIME, RUNS_AT_A_TIME, Store, check_key};

/// Objects of the store are manifests and one segment's rejected rows; anything larger is not one of them.
const MAX_OBJECT: i64 = 256 << 20;

/// Objects below `s3://bucket/prefix`.
pub(super) struct S3Store {
    client: Client,
    settings: S3Settings,
    bucket: String,
    /// Empty, or ends with a slash.
    prefix: String,
}

impl S3Store {
    pub(super) async fn open(address: &str, settings: &S3Settings) -> Result<Self, Failure> {
        let (bucket, prefix) = s3_client::split(address)?;
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() {
            check_key(prefix)?;
        }
        Ok(Self {
            client: s3_client::client(settings).await,
            settings: settings.clone(),
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("{prefix}/")
            },
        })
    }

    fn place(&self, key: &str) -> Result<(String, String), Failure> {
        check_key(key)?;
        let key = format!("{}{key}", self.prefix);
        let address = format!("s3://{}/{key}", self.bucket);
        Ok((key, address))
    }
}

#[async_trait]
impl Store for S3Store {
    async fn put(&self, key: &str, data: Bytes) -> Result<(), Failure> {
        let (key, address) = self.place(key)?;
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .body(ByteStream::from(data));
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(s3_client::failure("write", &address, &self.settings, error)),
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes, Failure> {
        let (key, address) = self.place(key)?;
        let answer = self.client.get_object().bucket(&self.bucket).key(key).send().await;
        let object = answer.map_err(|error| s3_client::failure("read", &address, &self.settings, error))?;
        if object.content_length().is_some_and(|length| length > MAX_OBJECT) {
            return Err(Failure::permanent(format!(
                "{address} is larger than {MAX_OBJECT} bytes and no object of a checkpoint store; \
                 use a prefix that nothing else writes to"
            )));
        }
        let body = object.body.collect().await.map_err(|error| {
            Failure::transient(format!(
                "reading {address} at {} broke off: {error}",
                self.settings.server()
            ))
        })?;
        Ok(body.into_bytes())
    }

    async fn runs(&self, after: &str) -> Result<Vec<String>, Failure> {
        let (prefix, mut runs) = (format!("{}runs/", self.prefix), Vec::new());
        let mut last = after.to_owned();
        while runs.len() < RUNS_AT_A_TIME {
            // The sign after `/` stands behind all that the last run has.
            let after = if last.is_empty() {
                String::new()
            } else {
                format!("{prefix}{last}0")
            };
            let found = self.page(&prefix, &after, 1).await?;
            let Some((key, _)) = found.first() else { break };
            let run = key.get(prefix.len()..).and_then(|rest| rest.split_once('/'));
            // What lies beside the runs' folders isn't ours.
            let Some((run, _)) = run else { break };
            run.clone_into(&mut last);
            runs.push(last.clone());
        }
        Ok(runs)
    }

    async fn list(&self, folder: &str, after: &str) -> Result<Vec<(String, u64)>, Failure> {
        let (place, _) = self.place(folder)?;
        let after = if after.is_empty() {
            String::new()
        } else {
            format!("{}{after}", self.prefix)
        };
        let found = self.page(&format!("{place}/"), &after, OBJECTS_AT_A_TIME).await?;
        let key = |(key, bytes): (String, u64)| Some((key.strip_prefix(&self.prefix)?.to_owned(), bytes));
        Ok(found.into_iter().filter_map(key).collect())
    }

    async fn delete(&self, key: &str) -> Result<(), Failure> {
        let (key, address) = self.place(key)?;
        let request = self.client.delete_object().bucket(&self.bucket).key(key);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(s3_client::failure("delete", &address, &self.settings, error)),
        }
    }
}

impl S3Store {
    /// Objects with a prefix, after a key, with their sizes.
    async fn page(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<(String, u64)>, Failure> {
        let mut request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
        if !after.is_empty() {
            request = request.start_after(after);
        }
        let answer = request.max_keys(i32::try_from(most).unwrap_or(i32::MAX)).send().await;
        let address = format!("s3://{}/{prefix}", self.bucket);
        let answer = answer.map_err(|error| s3_client::failure("list", &address, &self.settings, error))?;
        let object = |found: &aws_sdk_s3::types::Object| {
            let bytes = found.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            Some((found.key()?.to_owned(), bytes))
        };
        Ok(answer.contents().iter().filter_map(object).collect())
    }
}
