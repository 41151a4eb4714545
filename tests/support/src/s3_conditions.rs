//! The S3 server's conditional writes, made what they are at AWS: of several that meet, exactly one happens. The library
//! looks at the condition first and writes then, and what it reads meanwhile may be of two versions.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use async_trait::async_trait;
use bytes::BytesMut;
use futures::StreamExt;
use s3s::dto::{
    CreateBucketInput, CreateBucketOutput, DeleteObjectInput, DeleteObjectOutput, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
    ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, PutObjectOutput,
    StreamingBlob,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::sync::RwLock;

/// What the server does with a write under a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditions {
    /// It honours the condition.
    Honoured,
    /// It writes whatever the condition says, as servers do that don't know it.
    Ignored,
}

/// Folders as buckets.
pub(crate) struct Conditional {
    files: FileSystem,
    conditions: Conditions,
    /// An object has one of these locks: writers under a condition alone, readers together.
    locks: Vec<RwLock<()>>,
}

impl Conditional {
    pub(crate) fn new(files: FileSystem, conditions: Conditions) -> Self {
        Self {
            files,
            conditions,
            locks: (0..256).map(|_| RwLock::new(())).collect(),
        }
    }

    fn lock(&self, bucket: &str, key: &str) -> &RwLock<()> {
        let mut hasher = DefaultHasher::new();
        (bucket, key).hash(&mut hasher);
        let place = hasher.finish() % self.locks.len() as u64;
        &self.locks[usize::try_from(place).unwrap_or_default()]
    }
}

#[async_trait]
impl S3 for Conditional {
    async fn put_object(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = &mut request.input;
        if self.conditions == Conditions::Ignored {
            input.if_match = None;
            input.if_none_match = None;
        }
        if input.if_match.is_none() && input.if_none_match.is_none() {
            return self.files.put_object(request).await;
        }
        // Nobody holds a lock while a client sends.
        let Some(mut body) = input.body.take() else {
            return Err(s3_error!(IncompleteBody));
        };
        let mut data = BytesMut::new();
        while let Some(part) = body.next().await {
            data.extend_from_slice(&part.map_err(|_| s3_error!(IncompleteBody))?);
        }
        input.body = Some(StreamingBlob::from(Body::from(data.freeze())));
        let _alone = self.lock(&input.bucket, &input.key).write().await;
        self.files.put_object(request).await
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let _shared = self.lock(&request.input.bucket, &request.input.key).read().await;
        self.files.get_object(request).await
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let _shared = self.lock(&request.input.bucket, &request.input.key).read().await;
        self.files.head_object(request).await
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let _alone = self.lock(&request.input.bucket, &request.input.key).write().await;
        self.files.delete_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn list_objects(&self, request: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        self.files.list_objects(request).await
    }

    async fn list_buckets(&self, request: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        self.files.list_buckets(request).await
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(request).await
    }

    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        self.files.create_bucket(request).await
    }
}
