//! One trace over all processes: the W3C context of an envelope becomes the parent of a span here. The process sets the
//! propagator; without one there is no context, and everything works as well.

use std::collections::HashMap;

use opentelemetry::global;
use opentelemetry::propagation::Extractor;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A context as it travels: `traceparent` and `tracestate`.
pub(crate) type Carrier = HashMap<String, String>;

struct Reader<'a>(&'a Carrier);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// Hangs a span that was not entered yet under what the envelope said.
pub(crate) fn follow(span: &Span, carrier: &Carrier) {
    if carrier.is_empty() {
        return;
    }
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&Reader(carrier)));
    // An error means that nobody exports this span: then there is nothing to hang under anything.
    drop(span.set_parent(context));
}
