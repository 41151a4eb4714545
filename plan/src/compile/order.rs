//! The order in which steps can be planned: references in SQL define it, not the order of the file.

use std::collections::HashMap;

use super::statement::{self, Parsed};
use super::steps::Planner;

/// Parses every step and gives those that can be planned, each after what it reads. Broken SQL, unknown tables and
/// circles are reported; what depends on a step that is left out is left out too.
pub(crate) fn order(planner: &mut Planner<'_>) -> Vec<(String, Parsed)> {
    let definition = planner.definition;
    let mut parsed: HashMap<&str, Parsed> = HashMap::new();
    for step in definition.steps.values() {
        match statement::parse(&step.query.text, &definition.params) {
            Ok(query) => {
                if planner.check_reads(step, &query) {
                    parsed.insert(&step.name, query);
                }
            }
            Err(found) => planner.report_all(&step.query, step.query.place, found, None),
        }
    }
    let mut walk = Walk {
        parsed: &parsed,
        state: HashMap::new(),
        path: Vec::new(),
        order: Vec::new(),
        circles: Vec::new(),
    };
    for name in definition.steps.keys() {
        walk.visit(name);
    }
    let Walk { order, circles, .. } = walk;
    for circle in circles {
        report_circle(planner, &parsed, &circle);
    }
    let order: Vec<String> = order.into_iter().map(str::to_owned).collect();
    order
        .into_iter()
        .filter_map(|name| parsed.remove(name.as_str()).map(|query| (name, query)))
        .collect()
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    Fine,
    Broken,
}

struct Walk<'w> {
    parsed: &'w HashMap<&'w str, Parsed>,
    state: HashMap<&'w str, State>,
    path: Vec<&'w str>,
    order: Vec<&'w str>,
    circles: Vec<Vec<String>>,
}

impl<'w> Walk<'w> {
    /// Whether the step can be planned. Sources and whatever else is no step always can.
    fn visit(&mut self, name: &'w str) -> bool {
        let Some(query) = self.parsed.get(name) else {
            return true;
        };
        match self.state.get(name) {
            Some(State::Fine) => return true,
            Some(State::Broken) => return false,
            Some(State::Open) => {
                let start = self.path.iter().position(|step| *step == name).unwrap_or(0);
                self.circles
                    .push(self.path[start..].iter().map(|step| (*step).to_owned()).collect());
                return false;
            }
            None => {}
        }
        self.state.insert(name, State::Open);
        self.path.push(name);
        let mut fine = true;
        for (read, _) in &query.reads {
            fine &= self.visit(read);
        }
        self.path.pop();
        self.state.insert(name, if fine { State::Fine } else { State::Broken });
        if fine {
            self.order.push(name);
        }
        fine
    }
}

fn report_circle(planner: &mut Planner<'_>, parsed: &HashMap<&str, Parsed>, circle: &[String]) {
    let (Some(first), Some(last)) = (circle.first(), circle.last()) else {
        return;
    };
    let mut path = circle.to_vec();
    path.push(first.clone());
    let Some(step) = planner.definition.steps.get(last) else {
        return;
    };
    let at = parsed
        .get(last.as_str())
        .and_then(|query| query.reads.iter().find(|(read, _)| read == first)?.1);
    let place = planner.place(&step.query, at);
    let message = format!("steps read each other in a circle: {}", path.join(" reads "));
    planner
        .report
        .help(place, message, "take what both need into a step of its own");
}
