//! The W3C context of spans, as text and back. The process sets the propagator; without one there is no context, and
//! everything works as well.

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::{Context, global};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::deciding::Carrier;

struct Reader<'a>(&'a Carrier);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

struct Writer<'a>(&'a mut Carrier);

impl Injector for Writer<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}

/// The carrier of a `traceparent`; empty for an empty one.
pub(crate) fn carrier(traceparent: &str) -> Carrier {
    if traceparent.is_empty() {
        return Carrier::new();
    }
    Carrier::from([("traceparent".to_owned(), traceparent.to_owned())])
}

/// Hangs a span under what a peer said.
pub(crate) fn follow(span: &Span, carrier: &Carrier) {
    if carrier.is_empty() {
        return;
    }
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&Reader(carrier)));
    // An error means that no exporter listens to this span: then there is nothing to hang under anything.
    drop(span.set_parent(context));
}

/// A span's context, for a peer; `otherwise` if nobody exports the span.
pub(crate) fn context(span: &Span, otherwise: &str) -> Carrier {
    let mut found = Carrier::new();
    inject(&span.context(), &mut found);
    if found.contains_key("traceparent") {
        found
    } else {
        carrier(otherwise)
    }
}

fn inject(context: &Context, into: &mut Carrier) {
    global::get_text_map_propagator(|propagator| propagator.inject_context(context, &mut Writer(into)));
}
