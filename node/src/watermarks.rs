//! Watermarks at the destinations that a node knows: looked at, and set by hand.

use haulage_core::failure::Failure;
use haulage_core::watermark::{Form, Watermark};

use crate::config::NodeConfig;
use crate::work::Toolbox;

/// Every watermark at these destinations, of one pipeline or of all. A failure if one of the destinations can't be asked.
pub async fn list(config: NodeConfig, pipeline: Option<&str>) -> Result<Vec<Watermark>, Failure> {
    all(&Toolbox::new(config), pipeline).await
}

/// Sets a watermark that stands at `was` to another value, or forgets it; makes it, if it has a column. Permanent failure if
/// there is none, it stands elsewhere by now, or the value can't be one.
pub async fn set(config: NodeConfig, mark: &Watermark, was: Option<&str>) -> Result<(), Failure> {
    one(&Toolbox::new(config), mark, was).await
}

pub(crate) async fn all(tools: &Toolbox, pipeline: Option<&str>) -> Result<Vec<Watermark>, Failure> {
    let mut marks = Vec::new();
    let names: Vec<String> = tools.config().destinations.keys().cloned().collect();
    for name in names {
        let found = tools.destination_named(&name).await?.watermarks(pipeline).await?;
        marks.extend(found.into_iter().map(|mark| Watermark {
            destination: name.clone(),
            ..mark
        }));
    }
    Ok(marks)
}

pub(crate) async fn one(tools: &Toolbox, mark: &Watermark, was: Option<&str>) -> Result<(), Failure> {
    if let Some(value) = mark.value.as_deref().filter(|value| Form::of(value).is_none()) {
        return Err(Failure::permanent(format!(
            "\"{value}\" can't be a watermark: write a number, a date or a time, as in 42, 2013-01-31 or \
             \"2013-01-31 05:17:00\" (in UTC)"
        )));
    }
    tools
        .destination_named(&mark.destination)
        .await?
        .set_watermark(mark, was)
        .await
}
