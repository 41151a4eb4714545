//! Arguments that name a pipeline file and its parameters, for every verb that takes one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::config;
use crate::pipeline::Document;

/// A pipeline file with its parameters.
#[derive(Debug, Clone, Args)]
pub(crate) struct PipelineOptions {
    /// The pipeline file (YAML)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The value of a parameter; may be given several times
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = config::parse_param)]
    pub(crate) params: Vec<(String, String)>,
    /// What relative source paths are relative to: a folder or s3://bucket/prefix [default: the file's folder]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) base: Option<String>,
}

impl PipelineOptions {
    /// Reads the file and gathers the parameters; neither is checked for sense.
    pub(crate) fn load(&self) -> Result<(Document, BTreeMap<String, String>)> {
        Ok((
            Document::load(&self.file, self.base.as_deref())?,
            config::params(&self.params)?,
        ))
    }
}
